package echo

import "io"

// Verify reads the n bytes that GET /download?bytes=n answers with and returns
// an error at the first that is missing or wrong.
func Verify(body io.Reader, n int64) error {
	_, err := verify(body, n, func(int64) {})
	return err
}
