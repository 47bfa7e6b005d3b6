package container

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What the real library writes is read alike, and nothing breaks the reading.
func FuzzWire(f *testing.F) {
	f.Add("id", "name", "pod", "namespace", "image", []byte{0x0a, 0x03, 0x0a, 0x01, 'x'})
	f.Add("", "", "", "", "", []byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, id, name, pod, namespace, image string, junk []byte) {
		at(junk, 1, 2, 1)
		entry(junk, 12, labelPod)
		st := kubeletContainer(id, pod)
		st.Metadata.Name, st.Image.Image, st.Labels[labelNamespace] = name, image, namespace
		msg, err := proto.Marshal(&cri.ContainerStatusResponse{Status: st, Info: map[string]string{"k": name}})
		if err != nil {
			return // not UTF-8
		}
		status := at(msg, 1)
		for _, p := range [][2]string{
			{id, string(at(status, 1))},
			{name, string(at(status, 2, 1))},
			{image, string(at(status, 8, 1))},
			{pod, entry(status, 12, labelPod)},
			{namespace, entry(status, 12, labelNamespace)},
			{"45", entry(status, 13, annotationGrace)},
		} {
			if p[0] != p[1] {
				t.Errorf("%q was read as %q", p[0], p[1])
			}
		}
		req, err := proto.Marshal(&cri.ListContainersRequest{Filter: &cri.ContainerFilter{Id: id}})
		if err != nil || id != "" && !bytes.Equal(req, sub(1, str(1, id))) {
			t.Errorf("the request for %q is not what the library writes (%v)", id, err)
		}
	})
}
