package kubeevents

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"kzr/internal/report"
	"kzr/internal/trail"
)

// What became of an outcome, as it is counted.
const (
	Sent    = "sent"
	Refused = "refused" // the API server said no
	Failed  = "failed"  // it did not answer for giveUpAfter
	Dropped = "dropped" // the queue was full
	Limited = "limited" // a repetition, or over the pod's budget
	Unnamed = "unnamed" // the pod's name is not known
)

// Results are all that [Options.Count] is called with.
func Results() []string { return []string{Sent, Refused, Failed, Dropped, Limited, Unnamed} }

// The bounds.
const (
	queued      = 128              // outcomes that wait, half a megabyte at most
	perRequest  = 10 * time.Second // for one answer
	firstPause  = time.Second      // after a failure, doubling to the last
	lastPause   = 30 * time.Second
	giveUpAfter = 10 * time.Minute // an Event that old is no news
	lastWords   = 2 * time.Second  // for what is left when kzr stops
)

// Options say where the API server is, and who asks.
type Options struct {
	URL   string // https://host:port
	CA    string // file with the certificates that sign for it
	Token string // file with the bearer token; it is read again for each request
	Node  string // this node, as Kubernetes calls it
	Log   *slog.Logger
	Count func(result string) // may be nil
}

// serviceAccount is where the kubelet puts what a pod needs to speak to the API server.
const serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount"

// ErrOutside says that this is no pod, or one without a token.
var ErrOutside = errors.New("not in a pod with a service account's token")

// InCluster returns the options of a pod.
func InCluster() (Options, error) {
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	o := Options{
		URL:   "https://" + net.JoinHostPort(host, port),
		CA:    filepath.Join(serviceAccount, "ca.crt"),
		Token: filepath.Join(serviceAccount, "token"),
		Node:  report.Host(),
	}
	if host == "" || port == "" {
		return Options{}, ErrOutside
	}
	if _, err := os.Stat(o.Token); err != nil {
		return Options{}, fmt.Errorf("%w: %w", ErrOutside, err)
	}
	return o, nil
}

// Sender posts Events.
type Sender struct {
	opts   Options
	queue  chan trail.Outcome
	client *http.Client
	budget budget
	pause  time.Duration
	warned map[string]time.Time // by result, when it was logged last
}

// New returns a sender whose Run has to be called. The error is about the options.
func New(o Options) (*Sender, error) {
	if u, err := url.Parse(o.URL); err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("the API server's address is not https://host:port: %q", o.URL)
	}
	s := &Sender{opts: o, queue: make(chan trail.Outcome, queued), warned: make(map[string]time.Time)}
	if err := s.connect(); err != nil {
		return nil, err
	}
	return s, nil
}

// connect reads the certificates, which the kubelet changes in a running pod.
func (s *Sender) connect() error {
	pem, err := os.ReadFile(s.opts.CA)
	if err != nil {
		return fmt.Errorf("reading the API server's certificate authority: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("no certificate in %s", s.opts.CA)
	}
	if s.client != nil {
		s.client.CloseIdleConnections()
	}
	s.client = &http.Client{
		Timeout: perRequest,
		Transport: &http.Transport{
			TLSClientConfig:       &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			MaxConnsPerHost:       1,
			IdleConnTimeout:       30 * time.Second,
			ResponseHeaderTimeout: perRequest,
		},
		// The token goes to the API server and nowhere else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return nil
}

// Offer takes an outcome and never waits.
func (s *Sender) Offer(o trail.Outcome) {
	if o.Process == nil || o.Process.Container == nil || o.Process.Container.PodUID == "" || reasonOf(&o) == "" {
		return
	}
	select {
	case s.queue <- o:
	default:
		s.count(Dropped)
	}
}

// Run posts until ctx ends.
func (s *Sender) Run(ctx context.Context) {
	defer s.client.CloseIdleConnections()
	for {
		select {
		case <-ctx.Done():
			s.flush(context.WithoutCancel(ctx))
			return
		case o := <-s.queue:
			s.tell(ctx, &o)
		}
	}
}

// flush tries once more what is left, for a moment: it may be why a container ended.
func (s *Sender) flush(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lastWords)
	defer cancel()
	for {
		select {
		case o := <-s.queue:
			s.tell(ctx, &o)
		default:
			return
		}
	}
}

// tell posts one outcome, again and again if the API server does not answer.
func (s *Sender) tell(ctx context.Context, o *trail.Outcome) {
	c, reason := o.Process.Container, reasonOf(o)
	if c.Pod == "" || c.Namespace == "" {
		s.count(Unnamed)
		return
	}
	earlier, ok := s.budget.allow(c.PodUID, c.Name+"/"+reason, o.Time)
	if !ok {
		s.count(Limited)
		return
	}
	e := newEvent(o, s.opts.Node, reason, earlier)
	for {
		err := s.post(ctx, &e)
		if err == nil {
			s.pause = 0
			s.count(Sent)
			return
		}
		var answer *refusal
		if errors.As(err, &answer) && !answer.temporary() {
			s.count(Refused)
			s.warn(Refused, "the API server refuses Events", err)
			return
		}
		s.warn(Failed, "the API server does not take Events", err)
		if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
			if err := s.connect(); err != nil {
				s.warn(Failed, "the API server does not take Events", err)
			}
		}
		s.pause = min(max(2*s.pause, firstPause), lastPause)
		wait := s.pause
		if answer != nil {
			wait = min(max(wait, answer.after), lastPause)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			s.count(Failed)
			return
		}
		if time.Since(o.Time) > giveUpAfter {
			s.count(Failed)
			return
		}
	}
}

// refusal is an answer other than that the Event was made.
type refusal struct {
	status  int
	message string
	after   time.Duration // when to ask again, 0 if it does not say
}

func (r *refusal) Error() string {
	return fmt.Sprintf("%d %s: %s", r.status, http.StatusText(r.status), r.message)
}

func (r *refusal) temporary() bool {
	return r.status == http.StatusTooManyRequests || r.status >= 500 || r.status == http.StatusUnauthorized // a token that is being renewed
}

func (s *Sender) post(ctx context.Context, e *event) error {
	body, err := e.json()
	if err != nil {
		return &refusal{message: err.Error()}
	}
	token, err := os.ReadFile(s.opts.Token)
	if err != nil {
		return fmt.Errorf("reading the token: %w", err)
	}
	where := s.opts.URL + "/apis/events.k8s.io/v1/namespaces/" + url.PathEscape(e.Metadata.Namespace) + "/events"
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, where, bytes.NewReader(body))
	if err != nil {
		return &refusal{message: err.Error()}
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Accept", "application/json")
	request.Header.Set("User-Agent", component)
	request.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	answer, err := s.client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 64<<10))
	switch {
	case answer.StatusCode == http.StatusCreated, answer.StatusCode == http.StatusConflict: // an earlier try got there
		return nil
	case err != nil:
		return err
	}
	r := &refusal{status: answer.StatusCode, message: "no reason given"}
	var status struct{ Message string }
	if json.Unmarshal(text, &status) == nil && status.Message != "" {
		r.message = report.SanitizeTo(status.Message, 512)
	}
	if n, err := strconv.Atoi(answer.Header.Get("Retry-After")); err == nil && n > 0 {
		r.after = time.Duration(min(n, 60)) * time.Second
	}
	return r
}

func (s *Sender) count(result string) {
	if s.opts.Count != nil {
		s.opts.Count(result)
	}
}

// warn logs once a minute: with an API server that is gone there is one a second.
func (s *Sender) warn(result, message string, err error) {
	if now := time.Now(); now.Sub(s.warned[result]) >= time.Minute {
		s.warned[result] = now
		s.opts.Log.Warn(message, "error", err)
	}
}
