package main

// int80 makes a system call without arguments as a 32-bit program does.
func int80(nr uint32) int32

func foreignGetpid() int { return int(int80(20)) }
