//go:build !amd64

package main

import "os"

// There is no other way to call this kernel from such a program.
func foreignGetpid() int { return os.Getpid() }
