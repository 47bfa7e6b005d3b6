package policy

// Reason says why a parent with enough old zombies is not acted on. The values
// are the contract's.
type Reason string

// Every reason of the contract.
const (
	Protected       Reason = "protected"
	OutOfScope      Reason = "out_of_scope"
	ByRule          Reason = "rule"
	Traced          Reason = "traced"
	Stopped         Reason = "stopped"
	Frozen          Reason = "frozen"
	Dying           Reason = "dying"
	Uninterruptible Reason = "uninterruptible"
	Waiting         Reason = "waiting"
	Foreign         Reason = "foreign"
	IdentityChanged Reason = "identity_changed"
	Recovered       Reason = "recovered"
	RateLimited     Reason = "rate_limited"
	Backoff         Reason = "backoff"
)

// Verdict is what kzr thinks of a parent right now. The values are the
// contract's.
type Verdict string

// Every verdict of the contract.
const (
	Watch  Verdict = "watch"  // does not meet the rule (yet)
	Target Verdict = "target" // meets it, nothing stands in the way
	Acting Verdict = "acting" // the ladder is under way
	Spared Verdict = "spared" // meets it, but Reason says why not
)
