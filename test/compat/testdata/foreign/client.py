"""What a program in Python does with etcd's API, by grpcio.

usage: client.py ADDRESS DESCRIPTORS [CA]
"""
import queue
import sys
import traceback

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

address, descriptors, *ca = sys.argv[1:]
files = descriptor_pb2.FileDescriptorSet.FromString(open(descriptors, "rb").read())
pool = descriptor_pool.DescriptorPool()
for file in files.file:
    pool.Add(file)
factory = message_factory.MessageFactory(pool)


def message(name, **fields):
    return factory.GetPrototype(pool.FindMessageTypeByName("etcdserverpb." + name))(**fields)


limits = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]
if ca:
    channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(open(ca[0], "rb").read()), limits)
else:
    channel = grpc.insecure_channel(address, limits)


def method(service, name, request, reply, kind="unary_unary"):
    return getattr(channel, kind)(
        f"/etcdserverpb.{service}/{name}",
        request_serializer=lambda m: m.SerializeToString(),
        response_deserializer=factory.GetPrototype(pool.FindMessageTypeByName("etcdserverpb." + reply)).FromString)


def call(service, name, kind, reply, timeout=10, **fields):
    return method(service, name, kind, reply)(message(kind, **fields), timeout=timeout)


def put(key, value):
    return call("KV", "Put", "PutRequest", "PutResponse", key=key, value=value)


def get(key, **fields):
    return call("KV", "Range", "RangeRequest", "RangeResponse", key=key, **fields)


class Stream:
    """Stream sends when it is told to and yields what comes."""

    def __init__(self, service, name, kind, reply, timeout=10):
        self.requests = queue.Queue()
        self.call = method(service, name, kind, reply, "stream_stream")(iter(self.requests.get, None), timeout=timeout)

    def send(self, request):
        self.requests.put(request)

    def next(self):
        return next(self.call)

    def end(self):
        self.requests.put(None)


def failure(f, *args, **fields):
    try:
        f(*args, **fields)
    except grpc.RpcError as e:
        return e
    raise AssertionError("it worked")


def put_and_get():
    put(b"p", b"1")
    assert get(b"p").kvs[0].value == b"1"


def a_big_message():
    value = b"v" * 1_400_000
    put(b"pbig/1", value)
    put(b"pbig/2", value)
    assert [kv.value for kv in get(b"pbig/", range_end=b"pbig0").kvs] == [value, value]


def a_message_too_big():
    assert "large" in failure(put, b"big", bytes(4 << 20)).details()
    put_and_get()


def errors():
    e = failure(put, b"", b"no key")
    assert e.code() == grpc.StatusCode.INVALID_ARGUMENT, e
    assert e.details() == "etcdserver: key is not provided", e
    assert failure(get, b"p", revision=1_000_000).code() == grpc.StatusCode.OUT_OF_RANGE


def a_watch_cancelled():
    watch = Stream("Watch", "Watch", "WatchRequest", "WatchResponse")
    watch.send(message("WatchRequest", create_request=message("WatchCreateRequest", key=b"pw")))
    assert watch.next().created
    for value in b"1", b"2", b"3":
        put(b"pw", value)
        assert watch.next().events[0].kv.value == value
    watch.call.cancel()
    assert watch.call.code() == grpc.StatusCode.CANCELLED
    watch.end()


def a_lease_kept_alive():
    lease = call("Lease", "LeaseGrant", "LeaseGrantRequest", "LeaseGrantResponse", TTL=60).ID
    alive = Stream("Lease", "LeaseKeepAlive", "LeaseKeepAliveRequest", "LeaseKeepAliveResponse")
    for _ in range(3):
        alive.send(message("LeaseKeepAliveRequest", ID=lease))
        assert alive.next().TTL == 60
    alive.end()
    assert list(alive.call) == [] and alive.call.code() == grpc.StatusCode.OK
    call("Lease", "LeaseRevoke", "LeaseRevokeRequest", "LeaseRevokeResponse", ID=lease)


def a_deadline():
    watch = Stream("Watch", "Watch", "WatchRequest", "WatchResponse", timeout=0.1)
    assert failure(watch.next).code() == grpc.StatusCode.DEADLINE_EXCEEDED
    watch.end()


failed = False
for test in (put_and_get, a_big_message, a_message_too_big, errors, a_watch_cancelled, a_lease_kept_alive, a_deadline):
    try:
        test()
        print("ok", test.__name__)
    except Exception:
        failed = True
        print("FAILED", test.__name__)
        traceback.print_exc(file=sys.stdout)
channel.close()
sys.exit(failed)
