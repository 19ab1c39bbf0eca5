package netcfg_test

import (
	"testing"

	"tulle/overlay/netcfg/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }
