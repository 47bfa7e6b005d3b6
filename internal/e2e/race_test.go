//go:build race

package e2e

// With the race detector in the tests, kzr gets it too.
const raceBuild = true
