package main

// spare is how much garbage may lie about besides as much as is in use.
const spare = 16 << 20

// ballast is memory that nobody uses. A proxy has little in use, so that by Go's
// measure, twice that, there is a collection for every few handshakes, which leave
// 60 KiB each; that was a tenth of their cost. Memory that is never written to counts
// as in use and takes none. Where GOGC is set, it alone says how often.
func ballast(getenv func(string) string) []byte {
	if getenv("GOGC") != "" {
		return nil
	}
	return make([]byte, spare)
}
