// Command helper is the reaping helper without the rest of kzr.
package main

import (
	"os"

	"kzr/internal/reapinside"
)

func main() {
	reapinside.Serve(os.Args)
	os.Exit(1)
}
