package container

import (
	"context"
	"fmt"
	"net/http"
	"strings"
)

// engineNames asks Docker, or podman, which answers the same question alike.
func engineNames(ctx context.Context, client *http.Client, m Match) (names, error) {
	var id, name, image string
	var pod names // what its labels say of it
	var podUID string
	labels := map[string]*string{
		labelPodUID: &podUID, labelPod: &pod.pod, labelNamespace: &pod.namespace, labelContainer: &pod.name,
	}
	found, err := engineGet(ctx, client, "/containers/"+m.ID+"/json", func(j *jsonReader, key string) error {
		switch key {
		case "Id":
			return j.text(&id)
		case "Name":
			return j.text(&name)
		case "Config":
			return j.object(func(key string) error {
				switch key {
				case "Image":
					return j.text(&image)
				case "Labels":
					return j.object(func(key string) error {
						if to := labels[key]; to != nil {
							return j.text(to)
						}
						return j.skip()
					})
				}
				return j.skip()
			})
		}
		return j.skip()
	})
	switch {
	case err != nil:
		return names{}, err
	case !found:
		return names{}, errUnknown
	case id != m.ID:
		return names{}, errAnother
	}
	n := names{name: strings.TrimPrefix(name, "/"), image: image}
	// An image can carry any label. kubelet overrides these, so they are true
	// where the cgroup, which no image chooses, is in that very pod.
	if m.PodUID != "" && podUID == m.PodUID {
		n.pod, n.namespace, n.name = pod.pod, pod.namespace, pod.name
	}
	return n, nil
}

func engineVersion(ctx context.Context, client *http.Client) (version string, err error) {
	found, err := engineGet(ctx, client, "/version", func(j *jsonReader, key string) error {
		if key == "Version" {
			return j.text(&version)
		}
		return j.skip()
	})
	if err == nil && !found {
		err = fmt.Errorf("HTTP status %d", http.StatusNotFound)
	}
	return version, err
}

// engineGet calls field for every key of the object that is the answer, if there
// is one.
func engineGet(ctx context.Context, client *http.Client, path string, field func(j *jsonReader, key string) error) (found bool, err error) {
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
	j := newJSONReader(resp.Body)
	if err := j.object(func(key string) error { return field(j, key) }); err != nil {
		return false, err
	}
	return true, j.end()
}
