// What a program for Node.js does with etcd's API, by grpc-js.
// usage: node client.js ADDRESS DESCRIPTORS [CA]
const assert = require('node:assert');
const fs = require('node:fs');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const [address, descriptors, ca] = process.argv.slice(2);
const api = grpc.loadPackageDefinition(
  loader.loadFileDescriptorSetFromBuffer(fs.readFileSync(descriptors), { keepCase: true, longs: String })).etcdserverpb;
const credentials = ca ? grpc.credentials.createSsl(fs.readFileSync(ca)) : grpc.credentials.createInsecure();
const limits = { 'grpc.max_receive_message_length': 64 << 20, 'grpc.max_send_message_length': 64 << 20 };
const client = (service) => new service(address, credentials, limits);
const kv = client(api.KV), leases = client(api.Lease), watches = client(api.Watch);

const call = (of, method, request, options = {}) => new Promise((resolve, reject) =>
  of[method](request, { deadline: Date.now() + 10_000, ...options }, (err, reply) => err ? reject(err) : resolve(reply)));
const next = (stream) => new Promise((resolve, reject) => {
  stream.once('data', (message) => { stream.pause(); resolve(message); });
  stream.once('error', reject);
  stream.resume();
});
const failure = (promise) => promise.then(() => assert.fail('it worked'), (err) => err);
const ended = (stream) => new Promise((resolve) => stream.once('error', resolve).resume());
const bytes = (s) => Buffer.from(s);

const tests = {
  async 'put and get'() {
    await call(kv, 'Put', { key: bytes('a'), value: bytes('1') });
    const got = await call(kv, 'Range', { key: bytes('a') });
    assert.equal(got.kvs[0].value.toString(), '1');
  },
  async 'a hundred at once'() {
    await Promise.all(Array.from({ length: 100 }, (_, i) => call(kv, 'Put', { key: bytes(`many/${i}`), value: bytes('x') })));
    const got = await call(kv, 'Range', { key: bytes('many/'), range_end: bytes('many0'), count_only: true });
    assert.equal(got.count, '100');
  },
  async 'a big message'() {
    const value = Buffer.alloc(1_400_000, 'v');
    await call(kv, 'Put', { key: bytes('big/1'), value });
    await call(kv, 'Put', { key: bytes('big/2'), value });
    const got = await call(kv, 'Range', { key: bytes('big/'), range_end: bytes('big0') });
    assert.equal(got.kvs.length, 2);
    assert.ok(got.kvs[1].value.equals(value));
  },
  async 'a message too big'() {
    const err = await failure(call(kv, 'Put', { key: bytes('big'), value: Buffer.alloc(4 << 20) }));
    assert.match(err.message, /too large|larger than max/);
    await tests['put and get']();
  },
  async 'errors'() {
    const err = await failure(call(kv, 'Put', { value: bytes('no key') }));
    assert.equal(err.code, grpc.status.INVALID_ARGUMENT);
    assert.equal(err.details, 'etcdserver: key is not provided');
    const unknown = await failure(call(kv, 'Range', { key: bytes('a'), revision: '1000000' }));
    assert.equal(unknown.code, grpc.status.OUT_OF_RANGE);
  },
  async 'a watch, cancelled'() {
    const watch = watches.Watch();
    watch.write({ create_request: { key: bytes('w') } });
    assert.equal((await next(watch)).created, true);
    for (const value of ['1', '2', '3']) {
      const event = next(watch);
      await call(kv, 'Put', { key: bytes('w'), value: bytes(value) });
      assert.equal((await event).events[0].kv.value.toString(), value);
    }
    const end = ended(watch);
    watch.cancel();
    assert.equal((await end).code, grpc.status.CANCELLED);
  },
  async 'a lease, kept alive'() {
    const { ID } = await call(leases, 'LeaseGrant', { TTL: '60' });
    const alive = leases.LeaseKeepAlive();
    for (let i = 0; i < 3; i++) {
      const reply = next(alive);
      alive.write({ ID });
      assert.equal((await reply).TTL, '60');
    }
    const over = new Promise((resolve, reject) => alive.once('end', resolve).once('error', reject).resume());
    alive.end();
    await over;
    await call(leases, 'LeaseRevoke', { ID });
  },
  async 'a deadline'() {
    const watch = watches.Watch({ deadline: Date.now() + 100 });
    assert.equal((await ended(watch)).code, grpc.status.DEADLINE_EXCEEDED);
  },
  async 'a call, cancelled'() {
    const err = await new Promise((resolve) => {
      const c = kv.Range({ key: bytes('big/'), range_end: bytes('big0') }, (err) => resolve(err));
      c.cancel();
    });
    assert.equal(err.code, grpc.status.CANCELLED);
    await tests['put and get']();
  },
};

(async () => {
  for (const [name, test] of Object.entries(tests)) {
    try {
      await test();
      console.log('ok', name);
    } catch (err) {
      console.log('FAILED', name, err);
      process.exitCode = 1;
    }
  }
  for (const c of [kv, leases, watches]) c.close();
})();
