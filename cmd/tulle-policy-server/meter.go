package main

import "tulle/policy/server"

// newMeter makes what counts.
func newMeter() server.Meter { return nil }
