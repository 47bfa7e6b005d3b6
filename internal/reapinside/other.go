//go:build !amd64

package reapinside

import (
	"errors"
	"net"

	"kzr/internal/task"
)

// Serve returns at once: there is no helper on this processor.
func Serve([]string) {}

// Judge says what a stance tells against reaping inside a process.
func Judge(task.Stance) string { return Unsupported.String() }

func start() (int, *net.UnixConn, error) { return 0, nil, errors.ErrUnsupported }
