# python3-etcd, a client of the v2 API: files, directories, watches, locks.
import sys, threading
import etcd

host, port = sys.argv[1].rsplit(":", 1)
client = etcd.Client(host=host, port=int(port), allow_reconnect=True)


def refused(kind, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except kind:
        return
    raise AssertionError("%s: expected %s" % (call.__name__, kind.__name__))


# Files.
first = client.write("/python/a", "1")
assert first.action == "set" and first.value == "1" and not first.dir
assert client.read("/python/a").value == "1"
assert client.write("/python/a", "2")._prev_node.value == "1"
refused(etcd.EtcdKeyNotFound, client.read, "/python/none")
refused(etcd.EtcdAlreadyExist, client.write, "/python/a", "3", prevExist=False)
refused(etcd.EtcdCompareFailed, client.write, "/python/a", "3", prevValue="1")
assert client.write("/python/a", "3", prevValue="2").action == "compareAndSwap"
assert client.test_and_set("/python/a", "4", "3").value == "4"

# Directories.
refused(etcd.EtcdNotFile, client.write, "/python", "x")
client.write("/python/dir", None, dir=True)
for i in range(3):
    client.write("/python/dir", "job %d" % i, append=True)
queue = [n for n in client.read("/python/dir", recursive=True, sorted=True).leaves]
assert [n.value for n in queue] == ["job 0", "job 1", "job 2"]
refused(etcd.EtcdDirNotEmpty, client.delete, "/python/dir", dir=True)
assert len(list(client.get("/python").children)) == 2

# Values that are not just letters.
for value in ["", "a b&c=d+e%20", "grüße 鍵", "{\"json\": [1, 2]}", "x" * 100000]:
    client.write("/python/odd", value)
    assert client.read("/python/odd").value == value

# Time to live, and new time for it.
client.write("/python/soon", "x", ttl=60)
assert 0 < client.read("/python/soon").ttl <= 60
client.refresh("/python/soon", ttl=100)
assert client.read("/python/soon").ttl > 60 and client.read("/python/soon").value == "x"

# A watch that history answers, one that waits, and one that goes on.
index = client.write("/python/watched", "0").modifiedIndex
client.write("/python/watched", "1")
assert client.watch("/python/watched", index=index + 1).value == "1"
seen = []


def follow():
    for change in client.eternal_watch("/python/watched", index=index + 2, recursive=True):
        seen.append((change.action, change.value))
        if change.action == "delete":
            return


follower = threading.Thread(target=follow, daemon=True)
follower.start()
client.write("/python/watched", "2")
client.write("/python/watched", "3", ttl=60)
client.delete("/python/watched")
follower.join(30)
assert seen == [("set", "2"), ("set", "3"), ("delete", None)], seen

# A lock that one holds at a time.
one, other = etcd.Lock(client, "job"), etcd.Lock(client, "job")
assert one.acquire(blocking=True, lock_ttl=60)
assert not other.acquire(blocking=False)
waiting = threading.Thread(target=lambda: other.acquire(blocking=True, lock_ttl=60, timeout=30), daemon=True)
waiting.start()
one.release()
waiting.join(30)
assert other.is_acquired
other.release()

# The cluster.
assert client.leader["clientURLs"] and len(client.machines) >= 1 and client.members
assert client.stats["state"] == "StateLeader" and "watchers" in client.store_stats

client.delete("/python", recursive=True)
refused(etcd.EtcdKeyNotFound, client.read, "/python")
print("well")
