// Package fault lists every refusal a client may be told: one row each, with
// the name we use, the gRPC code and the text that etcd's clients match on,
// byte for byte. A refusal is an answer, not a failure: it is deterministic
// where it comes from the state, and it is never logged.
package fault

import "errors"

// Code is a gRPC status code. The numbers are gRPC's own, so that nothing
// below the api needs to know gRPC.
type Code uint32

const (
	Canceled           Code = 1
	Unknown            Code = 2
	InvalidArgument    Code = 3
	DeadlineExceeded   Code = 4
	NotFound           Code = 5
	PermissionDenied   Code = 7
	ResourceExhausted  Code = 8
	FailedPrecondition Code = 9
	OutOfRange         Code = 11
	Unimplemented      Code = 12
	Unavailable        Code = 14
	DataLoss           Code = 15
	Unauthenticated    Code = 16
)

// Fault is one refusal. Rows are compared by identity: use errors.Is.
type Fault struct {
	Code Code
	Text string
}

// Error returns the text a client sees.
func (f *Fault) Error() string { return f.Text }

// Of returns the fault that err is or wraps, or nil.
func Of(err error) *Fault {
	var f *Fault
	if errors.As(err, &f) {
		return f
	}
	return nil
}

func row(code Code, text string) *Fault {
	f := &Fault{Code: code, Text: text}
	All = append(All, f)
	return f
}

// All holds every row, in the order of this file.
var All []*Fault

// Keys, ranges and transactions.
var (
	EmptyKey          = row(InvalidArgument, "etcdserver: key is not provided")
	KeyNotFound       = row(InvalidArgument, "etcdserver: key not found")
	ValueProvided     = row(InvalidArgument, "etcdserver: value is provided")
	LeaseProvided     = row(InvalidArgument, "etcdserver: lease is provided")
	TooManyOps        = row(InvalidArgument, "etcdserver: too many operations in txn request")
	DuplicateKey      = row(InvalidArgument, "etcdserver: duplicate key given in txn request")
	InvalidSortOption = row(InvalidArgument, "etcdserver: invalid sort option")
	RequestTooLarge   = row(InvalidArgument, "etcdserver: request is too large")
	Malformed         = row(InvalidArgument, "kvorum: malformed request")                          // not etcd's: bytes that are no message got past the api
	NodeRefused       = row(FailedPrecondition, "kvorum: the hierarchy of keys does not allow it") // not etcd's: what a v2 client is told comes with it
	InvalidClientAPI  = row(InvalidArgument, "etcdserver: invalid client api version")
	Compacted         = row(OutOfRange, "etcdserver: mvcc: required revision has been compacted")
	FutureRevision    = row(OutOfRange, "etcdserver: mvcc: required revision is a future revision")
	NoSpace           = row(ResourceExhausted, "etcdserver: mvcc: database space exceeded")
	StreamSort        = row(Unimplemented, "RangeStream does not support custom sort orders")
	StreamRevisions   = row(Unimplemented, "RangeStream does not support revision filters")
)

// Leases.
var (
	LeaseNotFound    = row(NotFound, "etcdserver: requested lease not found")
	LeaseExists      = row(FailedPrecondition, "etcdserver: lease already exists")
	LeaseTTLTooLarge = row(OutOfRange, "etcdserver: too large lease TTL")
	NotPrimary       = row(Unknown, "not a primary lessor")
)

// Watches, locks and elections.
var (
	WatchCanceled    = row(Canceled, "etcdserver: watch canceled")
	NoElectionLeader = row(Unknown, "election: no leader")
	NotElected       = row(Unknown, "election: not leader")
	LeaderMissing    = row(Unknown, "\"leader\" field must be provided")
	SessionExpired   = row(Unknown, "mutex: session is expired")
)

// Members.
var (
	MemberURLs         = row(InvalidArgument, "etcdserver: given member URLs are invalid")
	MemberNotFound     = row(NotFound, "etcdserver: member not found")
	MemberExists       = row(FailedPrecondition, "etcdserver: member ID already exist")
	PeerURLExists      = row(FailedPrecondition, "etcdserver: Peer URLs already exists")
	NotEnoughStarted   = row(Unknown, "etcdserver: re-configuration failed due to not enough started members") // the code on the wire is Unknown: etcd maps it through the client's value
	NotLearner         = row(FailedPrecondition, "etcdserver: can only promote a learner member")
	LearnerNotReady    = row(FailedPrecondition, "etcdserver: can only promote a learner member which is in sync with leader")
	TooManyLearners    = row(FailedPrecondition, "etcdserver: too many learner members in cluster")
	ClusterIDMismatch  = row(FailedPrecondition, "etcdserver: cluster ID mismatch")
	LearnerUnsupported = row(FailedPrecondition, "etcdserver: rpc not supported for learner")
	BadTransferee      = row(FailedPrecondition, "etcdserver: bad leader transferee")
	NotLeader          = row(FailedPrecondition, "etcdserver: not leader")
	NotCapable         = row(FailedPrecondition, "etcdserver: not capable")
)

// Users, roles and tokens.
var (
	UserEmpty            = row(InvalidArgument, "etcdserver: user name is empty")
	RoleEmpty            = row(InvalidArgument, "etcdserver: role name is empty")
	AuthFailed           = row(InvalidArgument, "etcdserver: authentication failed, invalid user ID or password")
	PermissionNotGiven   = row(InvalidArgument, "etcdserver: permission not given")
	InvalidAuthMgmt      = row(InvalidArgument, "etcdserver: invalid auth management")
	AuthOldRevision      = row(InvalidArgument, "etcdserver: revision of auth store is old")
	RootUserNotExist     = row(FailedPrecondition, "etcdserver: root user does not exist")
	RootRoleNotExist     = row(FailedPrecondition, "etcdserver: root user does not have root role")
	UserExists           = row(FailedPrecondition, "etcdserver: user name already exists")
	UserNotFound         = row(FailedPrecondition, "etcdserver: user name not found")
	RoleExists           = row(FailedPrecondition, "etcdserver: role name already exists")
	RoleNotFound         = row(FailedPrecondition, "etcdserver: role name not found")
	RoleNotGranted       = row(FailedPrecondition, "etcdserver: role is not granted to the user")
	PermissionNotGranted = row(FailedPrecondition, "etcdserver: permission is not granted to the role")
	AuthNotEnabled       = row(FailedPrecondition, "etcdserver: authentication is not enabled")
	PermissionRefused    = row(PermissionDenied, "etcdserver: permission denied")
	InvalidAuthToken     = row(Unauthenticated, "etcdserver: invalid auth token")
	NoPasswordUser       = row(Unknown, "auth: authentication failed, password was given for no password user")
)

// The cluster as a whole.
var (
	TooManyRequests         = row(Unknown, "etcdserver: too many requests") // Unknown on the wire, as NotEnoughStarted
	NoLeader                = row(Unavailable, "etcdserver: no leader")
	LeaderChanged           = row(Unavailable, "etcdserver: leader changed")
	Stopped                 = row(Unavailable, "etcdserver: server stopped")
	Timeout                 = row(Unavailable, "etcdserver: request timed out")
	TimeoutLeaderFail       = row(Unavailable, "etcdserver: request timed out, possibly due to previous leader failure")
	TimeoutConnectionLost   = row(Unavailable, "etcdserver: request timed out, possibly due to connection lost")
	TimeoutWaitAppliedIndex = row(Unavailable, "etcdserver: request timed out, waiting for the applied index took too long")
	Unhealthy               = row(Unavailable, "etcdserver: unhealthy cluster")
	Corrupt                 = row(DataLoss, "etcdserver: corrupt cluster")
	RequestCanceled         = row(Canceled, "etcdserver: request canceled")
	RequestDeadline         = row(DeadlineExceeded, "etcdserver: context deadline exceeded")
)

// Versions.
var (
	DowngradeFormat     = row(InvalidArgument, "etcdserver: wrong downgrade target version format")
	DowngradeTarget     = row(InvalidArgument, "etcdserver: invalid downgrade target version")
	DowngradeNoVersion  = row(FailedPrecondition, "etcdserver: cluster version not found during downgrade")
	DowngradeInProgress = row(FailedPrecondition, "etcdserver: cluster has a downgrade job in progress")
	DowngradeNone       = row(FailedPrecondition, "etcdserver: no inflight downgrade job")
)
