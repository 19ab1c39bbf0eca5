// Package cc asks a Cloud Foundry Cloud Controller, by its API v3, what a policy
// server wants to know: which of some apps exist and in which space each is, and
// in which spaces somebody is a developer.
//
// The policy server calls it from its handlers' goroutines and from its timed
// cleanup. A Client holds no state of its own: every answer is the Cloud
// Controller's present one. Every request has a time limit and follows no
// redirect; an answer that is not what was asked for is an error and never "there
// is none", since policies are deleted by what is not there.
//
// The original asks the API v2 for spaces and their developers; v2 is switched
// off in newer foundations.
package cc
