package policy

// PublicGroup is the security group of a network that nobody else gives any: every
// container may reach the public addresses (RFC 6890's special ones left out), so
// neither the hosts' own networks nor anybody's private ones. Of IPv6 these are what is
// given out of 2000::/3: without the protocols' own 2001::/23, which has Teredo, 6to4,
// and the addresses of documentation.
func PublicGroup() SecurityGroup {
	return SecurityGroup{
		GUID: "public", Name: "public", RunningDefault: true, StagingDefault: true,
		Rules: []SecurityRule{{
			Protocol: "all", Description: "the public addresses of IPv4",
			Destination: "1.0.0.0-9.255.255.255,11.0.0.0-100.63.255.255,100.128.0.0-126.255.255.255,128.0.0.0-169.253.255.255," +
				"169.255.0.0-172.15.255.255,172.32.0.0-191.255.255.255,192.0.1.0/24,192.0.3.0-192.88.98.255,192.88.100.0-192.167.255.255," +
				"192.169.0.0-198.17.255.255,198.20.0.0-198.51.99.255,198.51.101.0-203.0.112.255,203.0.114.0-223.255.255.255",
		}, {
			Protocol: "all", Description: "the public addresses of IPv6",
			Destination: "2000::-2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff,2001:200::-2001:db7:ffff:ffff:ffff:ffff:ffff:ffff," +
				"2001:db9::-2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff,2003::-3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff," +
				"3fff:1000::-3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
		}},
	}
}
