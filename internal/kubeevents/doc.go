// Package kubeevents tells the owner of a pod what kzr did in it, as an Event that
// `kubectl describe pod` shows. Outcomes flow in, requests to the API server flow
// out; nothing here decides, and nothing waits for the API server but the one
// goroutine of [Sender.Run].
//
// It speaks HTTP itself: one request of one kind needs no client library.
package kubeevents
