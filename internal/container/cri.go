package container

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// Methods and field numbers are those of k8s.io/cri-api's runtime/v1/api.proto,
// which never change.
const criService = "/runtime.v1.RuntimeService/"

// What kubelet writes on each container that it makes.
const (
	labelPod       = "io.kubernetes.pod.name"
	labelNamespace = "io.kubernetes.pod.namespace"
	labelPodUID    = "io.kubernetes.pod.uid"
	labelContainer = "io.kubernetes.container.name"

	annotationGrace = "io.kubernetes.pod.terminationGracePeriod" // in seconds
)

// criNames asks for a container, or the sandbox that holds a pod's namespaces.
func criNames(ctx context.Context, client *http.Client, m Match) (names, error) {
	id := m.ID
	answer, err := unary(ctx, client, criService+"ContainerStatus", str(1, id))
	if isNo(err) {
		n, err := sandboxNames(ctx, client, id)
		if isNo(err) {
			return names{}, errUnknown
		}
		return n, err
	}
	if err != nil {
		return names{}, err
	}
	status := at(answer, 1)
	if string(at(status, 1)) != id {
		return names{}, errAnother
	}
	n := names{
		name:      string(at(status, 2, 1)),
		image:     string(at(status, 8, 1)),
		pod:       entry(status, 12, labelPod),
		namespace: entry(status, 12, labelNamespace),
		podUID:    entry(status, 12, labelPodUID),
		grace:     gracePeriod(entry(status, 13, annotationGrace)),
	}
	if asked := string(at(status, 8, 18)); asked != "" {
		n.image = asked // what the pod's author wrote, where the runtime knows it
	}
	if n.pod != "" {
		return n, nil
	}

	// Not kubelet's: the pod is known by its sandbox, which only the list names.
	answer, err = unary(ctx, client, criService+"ListContainers", sub(1, str(1, id)))
	if err != nil {
		return n, ignoreNo(err)
	}
	var sandbox string
	each(answer, func(num protowire.Number, c []byte) {
		if num == 1 && string(at(c, 1)) == id {
			sandbox = string(at(c, 2))
		}
	})
	if sandbox == "" {
		return n, nil
	}
	s, err := sandboxNames(ctx, client, sandbox)
	if err == nil {
		n.pod, n.namespace, n.podUID = s.pod, s.namespace, s.podUID
	}
	return n, ignoreNo(err)
}

// gracePeriod reads what the pod's author chose, as far as it can be meant: a day at
// most.
func gracePeriod(seconds string) time.Duration {
	const most = 24 * 60 * 60
	n, err := strconv.ParseUint(seconds, 10, 63)
	if err != nil {
		return 0
	}
	return time.Duration(min(n, most)) * time.Second
}

func sandboxNames(ctx context.Context, client *http.Client, id string) (names, error) {
	answer, err := unary(ctx, client, criService+"PodSandboxStatus", str(1, id))
	if err != nil {
		return names{}, err
	}
	status := at(answer, 1)
	if string(at(status, 1)) != id {
		return names{}, errAnother
	}
	return names{
		pod:       string(at(status, 2, 1)),
		podUID:    string(at(status, 2, 2)),
		namespace: string(at(status, 2, 3)),
	}, nil
}

// criVersion is the runtime's own name and version.
func criVersion(ctx context.Context, client *http.Client) (runtime, version string, err error) {
	answer, err := unary(ctx, client, criService+"Version", nil)
	if err != nil {
		return "", "", err
	}
	return string(at(answer, 2)), string(at(answer, 3)), nil
}

// isNo says whether err is the runtime's word that it has no such thing. Not
// every runtime gives the code for that, so it is any status but those that say
// that it could not answer.
func isNo(err error) bool {
	var se *statusError
	if !errors.As(err, &se) {
		return false
	}
	switch se.code {
	case codeDeadlineExceeded, codeUnavailable, codeUnimplemented, "":
		return false
	}
	return true
}

func ignoreNo(err error) error {
	if isNo(err) {
		return nil
	}
	return err
}

// each calls f with every string, bytes and message field of msg, up to where
// it is malformed.
func each(msg []byte, f func(num protowire.Number, value []byte)) {
	for len(msg) > 0 {
		num, typ, n := protowire.ConsumeTag(msg)
		if n < 0 {
			return
		}
		msg = msg[n:]
		if typ == protowire.BytesType {
			v, n := protowire.ConsumeBytes(msg)
			if n < 0 {
				return
			}
			f(num, v)
			msg = msg[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(num, typ, msg); n < 0 {
			return
		}
		msg = msg[n:]
	}
}

// at follows field numbers into msg; nil if there is no such field.
func at(msg []byte, path ...protowire.Number) []byte {
	for _, want := range path {
		var found []byte
		each(msg, func(num protowire.Number, v []byte) {
			if num == want {
				found = v
			}
		})
		msg = found
	}
	return msg
}

// entry is one value of the map<string, string> in a field of msg.
func entry(msg []byte, field protowire.Number, key string) (value string) {
	each(msg, func(num protowire.Number, v []byte) {
		if num == field && string(at(v, 1)) == key {
			value = string(at(v, 2))
		}
	})
	return value
}

// str is a message with one string field, sub one with a message in it.
func str(num protowire.Number, s string) []byte { return sub(num, []byte(s)) }

func sub(num protowire.Number, msg []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), msg)
}
