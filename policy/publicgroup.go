package policy

// PublicGroup is the security group of a network that nobody else gives any: every
// container may reach the public addresses (RFC 6890's special ones left out), so
// neither the hosts' own networks nor anybody's private ones.
func PublicGroup() SecurityGroup {
	return SecurityGroup{
		GUID: "public", Name: "public", RunningDefault: true, StagingDefault: true,
		Rules: []SecurityRule{{
			Protocol: "all", Description: "the public addresses of IPv4",
			Destination: "1.0.0.0-9.255.255.255,11.0.0.0-100.63.255.255,100.128.0.0-126.255.255.255,128.0.0.0-169.253.255.255," +
				"169.255.0.0-172.15.255.255,172.32.0.0-191.255.255.255,192.0.1.0/24,192.0.3.0-192.88.98.255,192.88.100.0-192.167.255.255," +
				"192.169.0.0-198.17.255.255,198.20.0.0-198.51.99.255,198.51.101.0-203.0.112.255,203.0.114.0-223.255.255.255",
		}},
	}
}
