package container

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// engineNames asks Docker, or podman, which answers the same question alike.
func engineNames(ctx context.Context, client *http.Client, m Match) (names, error) {
	var c struct {
		ID     string `json:"Id"`
		Name   string
		Config struct {
			Image  string
			Labels map[string]string
		}
	}
	status, err := engineGet(ctx, client, "/containers/"+m.ID+"/json", &c)
	switch {
	case err != nil:
		return names{}, err
	case status == http.StatusNotFound:
		return names{}, errUnknown
	case c.ID != m.ID:
		return names{}, fmt.Errorf("%w: it is about another container", errRefused)
	}
	n := names{name: strings.TrimPrefix(c.Name, "/"), image: c.Config.Image}
	// An image can carry any label. kubelet overrides these, so they are true
	// where the cgroup, which no image chooses, is in that very pod.
	if l := c.Config.Labels; m.PodUID != "" && l[labelPodUID] == m.PodUID {
		n.pod, n.namespace, n.name = l[labelPod], l[labelNamespace], l[labelContainer]
	}
	return n, nil
}

func engineVersion(ctx context.Context, client *http.Client) (string, error) {
	var v struct{ Version string }
	status, err := engineGet(ctx, client, "/version", &v)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("HTTP status %d", status)
	}
	return v.Version, err
}

// engineGet decodes the answer into v if there is one; 404 is no error.
func engineGet(ctx context.Context, client *http.Client, path string, v any) (status int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost"+path, nil)
	if err != nil {
		return 0, err
	}
	resp, body, err := do(client, req) //nolint:bodyclose // do has read and closed it
	if err != nil {
		return 0, err
	}
	switch resp.StatusCode {
	case http.StatusOK:
		if err := json.Unmarshal(body, v); err != nil {
			return 0, fmt.Errorf("%w: %w", errRefused, err)
		}
	case http.StatusNotFound:
	default:
		return 0, fmt.Errorf("HTTP status %d", resp.StatusCode)
	}
	return resp.StatusCode, nil
}
