package compat

// v2Differences are the answers in which kvorum differs from those that were
// recorded of etcd 3.4.23, each looked at and found right.
var v2Differences = []struct{ script, request, kvorum, why string }{
	{
		"form", "PUT /v2/keys/larger value={{x*2000000}}",
		"500 json cluster index=0\n" +
			`{"errorCode":300,"message":"Raft Internal Error","cause":"etcdserver: request is too large","index":0}` + "\n",
		"one keyspace has one limit, --max-request-bytes: a larger value could not be written by v3 again",
	},
	{
		"form", "PUT /v2/keys/largest value={{x*10485754}}",
		"500 json cluster index=0\n" +
			`{"errorCode":300,"message":"Raft Internal Error","cause":"etcdserver: request is too large","index":0}` + "\n",
		"likewise",
	},
	{
		"ttl", "PUT /v2/keys/far?prevExist=true value=1&ttl=9000000000",
		"200 json cluster index=i+3 raft\n" +
			`{"action":"update","node":{"key":"/far","value":"1","modifiedIndex":i+3,"createdIndex":i+2},"prevNode":{"key":"/far","value":"1","modifiedIndex":i+2,"createdIndex":i+2}}` + "\n",
		"etcd computes an end in the year 1734 and removes the node at once; an end that cannot be written down is none, as etcd has it for a set",
	},
	{
		"quirks", "next w",
		`{"action":"set","node":{"key":"/a/b","value":"2","modifiedIndex":i+2,"createdIndex":i+2}}` + "\n",
		"history tells the same as listening does: hidden nodes are hidden in both",
	},
	{
		"quirks", "next w",
		`{"action":"set","node":{"key":"/foobar","value":"2","modifiedIndex":i+3,"createdIndex":i+3}}` + "\n",
		"the removal of /foo is none of /foobar",
	},
	{
		"quirks", "next w",
		`{"action":"set","node":{"key":"/foo/none","value":"3","modifiedIndex":i+4,"createdIndex":i+4}}` + "\n",
		"history tells the same as listening does: what did not exist was not removed",
	},
	{
		"quirks", "next w",
		`{"action":"set","node":{"key":"/d","value":"2","modifiedIndex":i+3,"createdIndex":i+3}}` + "\n",
		"a stream is told once of a change",
	},
}
