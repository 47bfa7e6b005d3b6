package container

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// maxEngineAnswer bounds what is read of one answer by Docker or podman. It tells
// everything about a container, also its environment and its labels, which can be
// megabytes.
const maxEngineAnswer = 4 << 20

// engineNames asks Docker, or podman, which answers the same question alike.
func engineNames(ctx context.Context, client *http.Client, m Match) (names, error) {
	var c struct {
		ID     string `json:"Id"`
		Name   string
		Config struct {
			Image  string
			Labels map[string]string // in a struct their case would not matter
		}
	}
	found, err := engineGet(ctx, client, "/containers/"+m.ID+"/json", &c)
	switch {
	case err != nil:
		return names{}, err
	case !found:
		return names{}, errUnknown
	case c.ID != m.ID:
		return names{}, errAnother
	}
	n := names{name: strings.TrimPrefix(c.Name, "/"), image: c.Config.Image}
	// An image can carry any label. kubelet overrides these, so they are true
	// where the cgroup, which no image chooses, is in that very pod.
	if l := c.Config.Labels; m.PodUID != "" && l[labelPodUID] == m.PodUID {
		n.pod, n.namespace, n.name = l[labelPod], l[labelNamespace], l[labelContainer]
		n.grace = gracePeriod(l["annotation."+annotationGrace]) // as cri-dockerd keeps annotations
	}
	return n, nil
}

func engineVersion(ctx context.Context, client *http.Client) (string, error) {
	var v struct{ Version string }
	found, err := engineGet(ctx, client, "/version", &v)
	if err == nil && !found {
		err = fmt.Errorf("HTTP status %d", http.StatusNotFound)
	}
	return v.Version, err
}

// engineGet decodes the answer into v, if there is one.
func engineGet(ctx context.Context, client *http.Client, path string, v any) (found bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost"+path, nil)
	if err != nil {
		return false, err
	}
	resp, err := send(client, req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return false, nil
	default:
		return false, fmt.Errorf("HTTP status %d", resp.StatusCode)
	}
	body, err := readAtMost(resp.Body, maxEngineAnswer)
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return false, fmt.Errorf("%w: %w", errGarbled, err)
	}
	return true, nil
}
