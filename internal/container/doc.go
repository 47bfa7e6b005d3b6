// Package container says whose process it is. Cgroup paths flow in; a container
// and, for a host process, a systemd unit flow out at once ([Parse], [Unit]).
// The names that only a runtime knows (pod, namespace, container, image) follow
// later and are never waited for ([Resolver]).
//
// # What a hostile path can do
//
// A tenant who may create cgroups below its own container chooses their names.
// It can therefore fake the innermost container, which is for people to read,
// and nothing else: the outermost container comes from the part of the path
// that it cannot write, so scope, rules and limits go by that one, and nothing
// below a container is ever taken for a runtime's monitor.
//
// A host user to whom systemd delegates a subtree can fake a whole container
// there. That only brings its own processes into the reach of kzr. It could
// also borrow the id of somebody else's container, and with it that container's
// rule or limit, so a container below a user's subtree is marked
// [Ref.Delegated] and its id is never looked up with the node's runtimes.
package container
