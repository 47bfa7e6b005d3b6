package container

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// The runtimes' APIs are a handful of small questions over a unix socket, so
// they are asked with net/http, which speaks HTTP/2 without TLS and is in the
// daemon anyway. google.golang.org/grpc with k8s.io/cri-api does the same for
// 4.5 MiB more of binary and 3.7 MiB more of resident memory, of the 20 MiB that
// kzr may have; the tests hold this file against both of them.

// maxAnswer bounds what is read of one answer by CRI. A container with the largest
// annotations that Kubernetes allows stays below it.
const maxAnswer = 1 << 20

// newClient makes a client for the unix socket at path. Every call has a
// connection of its own: look-ups are rare, and between them a runtime can
// neither hold nor send anything.
func newClient(path string, http2 bool) *http.Client {
	tr := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
	}
	if http2 {
		tr.Protocols = new(http.Protocols)
		tr.Protocols.SetUnencryptedHTTP2(true)
		tr.HTTP2 = &http.HTTP2Config{
			MaxReceiveBufferPerConnection: 256 << 10,
			MaxReceiveBufferPerStream:     64 << 10,
		}
	}
	return &http.Client{
		Transport:     tr,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// send sends req and returns the answer, whose body the caller closes.
func send(client *http.Client, req *http.Request) (*http.Response, error) {
	req.Header.Set("User-Agent", "kzr")
	resp, err := client.Do(req)
	if ue, ok := errors.AsType[*url.Error](err); ok {
		err = ue.Err // the method and the made-up host say nothing
	}
	return resp, err
}

// do sends req and returns the answer with its whole body.
func do(client *http.Client, req *http.Request) (*http.Response, []byte, error) {
	resp, err := send(client, req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := readAtMost(resp.Body, maxAnswer)
	return resp, body, err
}

// readAtMost reads an answer, which is refused if it is longer than n bytes.
func readAtMost(r io.Reader, n int64) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r, n+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading the answer: %w", err)
	case int64(len(body)) > n:
		return nil, fmt.Errorf("%w: it is longer than %d bytes", errRefused, n)
	}
	return body, nil
}

// The gRPC status codes that kzr tells apart.
const (
	codeOK               = "0"
	codeDeadlineExceeded = "4"
	codeUnimplemented    = "12"
	codeUnavailable      = "14"
)

// statusError is a call that the runtime answered with anything but OK.
type statusError struct{ code, message string }

func (e *statusError) Error() string {
	return fmt.Sprintf("gRPC status %.8q: %.200q", e.code, e.message)
}

// unary makes one gRPC call: POST, a five byte frame header, the message, and
// the status in the trailer (or in the header, if there is no message).
func unary(ctx context.Context, client *http.Client, method string, msg []byte) ([]byte, error) {
	frame := make([]byte, 5, 5+len(msg))
	binary.BigEndian.PutUint32(frame[1:], uint32(len(msg)))
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://localhost"+method, bytes.NewReader(append(frame, msg...)))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	resp, body, err := do(client, req) //nolint:bodyclose // do has read and closed it
	if err != nil {
		return nil, err
	}
	if ct := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || !strings.HasPrefix(ct, "application/grpc") {
		return nil, fmt.Errorf("not a gRPC answer: HTTP status %d, content type %.40q", resp.StatusCode, ct)
	}
	end := resp.Trailer
	if end.Get("Grpc-Status") == "" {
		end = resp.Header
	}
	if code := end.Get("Grpc-Status"); code != codeOK {
		text := end.Get("Grpc-Message")
		if plain, err := url.PathUnescape(text); err == nil {
			text = plain
		}
		return nil, &statusError{code, text}
	}
	// One whole message, not compressed: nothing else was asked for.
	if len(body) < 5 || body[0] != 0 || int64(binary.BigEndian.Uint32(body[1:])) != int64(len(body)-5) {
		return nil, errors.New("not a gRPC message")
	}
	return body[5:], nil
}
