package controlplane

import (
	"errors"
	"os"
	"path/filepath"
	"time"
)

// fsyncs measures the disk: so many appends of a page, each made durable, in
// milliseconds.
func fsyncs(dir string, n int) (ms []float64, err error) {
	f, err := os.CreateTemp(dir, "fsync-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(filepath.Join(dir, filepath.Base(f.Name())))) }()
	page := make([]byte, 4096)
	for range n {
		begun := time.Now()
		if _, err := f.Write(page); err != nil {
			return nil, err
		}
		if err := f.Sync(); err != nil {
			return nil, err
		}
		ms = append(ms, time.Since(begun).Seconds()*1000)
	}
	return ms, nil
}
