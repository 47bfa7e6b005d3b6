package report

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if err := os.Setenv("KZR_NODE_NAME", "node1"); err != nil { // what [Host] is everywhere here
		panic(err)
	}
	goleak.VerifyTestMain(m)
}
