package probe

//go:generate go tool bpf2go -target bpfel -type hint -type counters -type zombie -type facts -type look -type request -type stance -type cgroups -type limit kzr ../../bpf/kzr.bpf.c -- -I../../bpf/headers -mcpu=v2 -Wall -Werror
