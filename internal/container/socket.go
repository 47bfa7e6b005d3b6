package container

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"path/filepath"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// UsualSockets are where runtimes listen if nothing else is configured.
var UsualSockets = []string{
	"/run/containerd/containerd.sock",
	"/run/crio/crio.sock",
	"/run/k3s/containerd/containerd.sock", // rke2 too
	"/run/k0s/containerd.sock",
	"/var/snap/microk8s/common/run/containerd.sock",
	"/run/docker.sock",
	"/run/podman/podman.sock",
}

// callTimeout bounds everything that is asked of one socket for one container.
// A healthy runtime answers within 5 ms.
const callTimeout = 2 * time.Second

// The pauses after a socket failed, doubling from the first to the last.
const (
	firstPause = time.Second
	lastPause  = 30 * time.Second
)

// API is how a runtime is spoken to.
type API string

// The APIs. A socket's file name tells which it is: docker.sock, podman.sock,
// and CRI for any other.
const (
	APICRI    API = "cri"
	APIDocker API = "docker"
	APIPodman API = "podman"
)

// The errors that are about one container and not about the socket: they are no
// reason to stop asking it. A garbled answer no tenant can bring about. One that
// is refused, for its length or the names in it, may well be a tenant's doing, and
// would be the same the next time.
var (
	errUnknown = errors.New("no such container")
	errGarbled = errors.New("unusable answer")
	errRefused = errors.New("refused answer")

	errAnother = fmt.Errorf("%w: it is about another container", errGarbled)
)

// names is what only a runtime knows.
type names struct {
	runtime, pod, namespace, podUID, name, image string

	grace time.Duration
}

// valid refuses an answer that no sound runtime gives. Kubernetes' own names
// are at most 253 bytes, and none has anything to hide in it.
func (n names) valid() error {
	for _, s := range []string{n.runtime, n.pod, n.namespace, n.podUID, n.name} {
		if err := validName(s, 253); err != nil {
			return err
		}
	}
	return validName(n.image, 512)
}

func validName(s string, most int) error {
	if len(s) > most {
		return fmt.Errorf("%w: a name of %d bytes", errRefused, len(s))
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("%w: a name that is not UTF-8: %q", errRefused, s)
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return fmt.Errorf("%w: a name that cannot be printed: %q", errRefused, s)
		}
	}
	return nil
}

// socket is one runtime's socket, with the memory of its failures.
type socket struct {
	path    string
	api     API
	client  *http.Client
	timeout time.Duration // for all that one question needs

	mu      sync.Mutex
	runtime string        // its own name, once it was asked for
	pause   time.Duration // 0 while it works
	until   time.Time     // not asked before this
}

func newSocket(path string) *socket {
	s := &socket{path: path, api: APICRI, timeout: callTimeout}
	switch filepath.Base(path) {
	case "docker.sock":
		s.api = APIDocker
	case "podman.sock":
		s.api = APIPodman
	}
	if s.api != APICRI {
		s.runtime = string(s.api)
	}
	s.client = newClient(path, s.api == APICRI)
	return s
}

// mayKnow says whether it is worth asking for a container: what the path told
// of the runtime rules some sockets out.
func (s *socket) mayKnow(m Match) bool {
	switch m.Runtime {
	case "containerd", "cri-o":
		return s.api == APICRI
	case "docker":
		return s.api == APIDocker
	case "podman":
		return s.api == APIPodman
	case "":
		return s.api != APIPodman
	}
	return false
}

// names asks for one container. Errors other than errUnknown, errGarbled and
// errRefused are the socket's failure.
func (s *socket) names(ctx context.Context, m Match) (names, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	ask := criNames
	if s.api != APICRI {
		ask = engineNames
	}
	n, err := ask(ctx, s.client, m)
	if err == nil {
		n.runtime = s.who(ctx)
		err = n.valid()
	}
	if err != nil {
		return names{}, err
	}
	return n, nil
}

// who is the runtime behind the socket; "" if it does not say.
func (s *socket) who(ctx context.Context) string {
	s.mu.Lock()
	runtime := s.runtime
	s.mu.Unlock()
	if runtime == "" {
		runtime, _, _ = criVersion(ctx, s.client)
		s.mu.Lock()
		s.runtime = runtime
		s.mu.Unlock()
	}
	return runtime
}

// paused returns when the socket may be asked again; a moment that is past if
// it may be asked now.
func (s *socket) paused() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.until
}

// result notes whether the socket worked and reports whether that is a change.
func (s *socket) result(ok bool) (changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed = ok != (s.pause == 0)
	if ok {
		s.pause = 0
		return changed
	}
	s.pause = min(max(2*s.pause, firstPause), lastPause)
	s.until = time.Now().Add(s.pause)
	return changed
}

// RuntimeStatus is what one socket had to say for itself.
type RuntimeStatus struct {
	Socket  string
	API     API
	Runtime string // as the runtime calls itself
	Version string
	Err     error // why it gives no names; nil if it works
}

// status asks the runtime for its version.
func (s *socket) status(ctx context.Context) RuntimeStatus {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	st := RuntimeStatus{Socket: s.path, API: s.api, Runtime: string(s.api)}
	if s.api == APICRI {
		st.Runtime, st.Version, st.Err = criVersion(ctx, s.client)
	} else {
		st.Version, st.Err = engineVersion(ctx, s.client)
	}
	if st.Err == nil {
		st.Err = cmp.Or(validName(st.Runtime, 253), validName(st.Version, 253))
	}
	if st.Err != nil {
		st.Runtime, st.Version = "", ""
		st.Err = s.explain(st.Err)
	}
	return st
}

// explain puts what to do about it before the reader.
func (s *socket) explain(err error) error {
	var se *statusError
	switch {
	case errors.As(err, &se) && se.code == codeUnimplemented:
		return fmt.Errorf("answers, but not to CRI; is its CRI plugin disabled? (%w)", err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer within %v: %w", s.timeout, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("not allowed to connect; under systemd a drop-in lets kzr, see kzr(8): %w", err)
	}
	return err
}
