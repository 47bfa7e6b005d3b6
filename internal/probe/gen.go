package probe

//go:generate go tool bpf2go -target bpfel -type hint -type record -type counters kzr ../../bpf/kzr.bpf.c -- -I../../bpf/headers -mcpu=v2 -Wall -Werror
