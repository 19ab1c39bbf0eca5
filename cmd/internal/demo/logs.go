package demo

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// DumpLogs writes what every process of the world logged, for a failed test.
func (w *World) DumpLogs(to io.Writer) {
	files, err := filepath.Glob(filepath.Join(w.Dir, "logs", "*.log"))
	if err != nil {
		fmt.Fprintln(to, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			fmt.Fprintln(to, err)
		} else if len(b) > 0 {
			fmt.Fprintf(to, "--- %s\n%s", filepath.Base(f), b)
		}
	}
}
