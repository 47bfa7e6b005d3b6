package main

import (
	"context"

	"kzr/internal/config"
	"kzr/internal/kubeevents"
	"kzr/internal/onaction"
	"kzr/internal/report"
	"kzr/internal/trail"
)

// others are those who are told of outcomes, beside the log and the stream.
type others struct {
	trail    trail.Recorder
	offer    []func(trail.Outcome)
	problems []string // why somebody is not told
}

// report passes an outcome on. Nothing in it waits.
func (o *others) report(e report.Event) {
	if len(o.offer) == 0 {
		return
	}
	if out, ok := o.trail.Add(e); ok {
		for _, offer := range o.offer {
			offer(out)
		}
	}
}

// tellOthers prepares what the configuration asks for, and returns what has to run for
// it. What cannot be told is a problem and no reason not to watch the node.
func (s *service) tellOthers(c config.Config) (run []func(context.Context)) {
	count := func(to string) func(string) { return func(result string) { s.metrics.ObserveNotice(to, result) } }
	if c.Kubernetes.Events {
		sender, err := newSender(s, count("kubernetes"))
		if err != nil {
			s.log.Error("kubernetes.events: no Events are sent", "error", err)
			s.others.problems = append(s.others.problems, "kubernetes.events: no Events are sent: "+oneLine(err.Error()))
		} else {
			s.metrics.ExpectNotices("kubernetes", kubeevents.Results())
			s.others.offer = append(s.others.offer, sender.Offer)
			run = append(run, sender.Run)
		}
	}
	if len(c.OnAction) > 0 {
		runner := onaction.New(onaction.Options{Command: c.OnAction, Node: report.Host(), Log: s.log, Count: count("command")})
		s.metrics.ExpectNotices("command", onaction.Results())
		s.others.offer = append(s.others.offer, runner.Offer)
		run = append(run, runner.Run)
	}
	return run
}

func newSender(s *service, count func(string)) (*kubeevents.Sender, error) {
	o, err := kubeevents.InCluster()
	if err != nil {
		return nil, err
	}
	o.Log, o.Count = s.log, count
	return kubeevents.New(o)
}
