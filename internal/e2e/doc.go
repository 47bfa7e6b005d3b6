// Package e2e holds kzr against real processes and a real kernel: each test
// starts the built program, makes a situation with internal/zoo and says what an
// operator must see. It knows nothing of kzr but its command line, its log and
// its documents. The tests named TestScenarioNN are the situations that kzr must
// get right; the others are promises beside those.
//
// Every daemon under test is confined: its rules act on executables that its own
// test put into a directory of its own, and only observe everything else. So the
// tests can run side by side, and beside whatever else the machine does.
//
// Environment: KZR_BIN names a built program, for machines without a compiler;
// KZR_OWN_MACHINE=1 allows what the whole machine feels, such as setting its
// clock.
package e2e
