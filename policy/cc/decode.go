package cc

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// decodePage reads a page of a list: its resources, and the query of the next
// page, nil at the end. Of the next page's address nothing else is taken, since
// it names the Cloud Controller as users reach it, and our token is for the one
// that was configured.
func decodePage[T any](body []byte) ([]T, url.Values, error) {
	var p struct {
		Pagination *struct {
			Next *struct {
				Href string `json:"href"`
			} `json:"next"`
		} `json:"pagination"`
		Resources *[]T `json:"resources"`
	}
	if err := json.Unmarshal(body, &p); err != nil {
		return nil, nil, err
	}
	if p.Pagination == nil || p.Resources == nil {
		return nil, nil, errors.New("it is no list")
	}
	if p.Pagination.Next == nil {
		return *p.Resources, nil, nil
	}
	next, err := url.Parse(p.Pagination.Next.Href)
	if err != nil {
		return nil, nil, fmt.Errorf("next page: %w", err)
	}
	query, err := url.ParseQuery(next.RawQuery)
	if err != nil {
		return nil, nil, fmt.Errorf("next page: %w", err)
	}
	if query.Get("page") == "" {
		return nil, nil, errors.New("the next page has no number")
	}
	return *p.Resources, query, nil
}

// relation is a to-one relationship; its data may be null.
type relation struct {
	Data *struct {
		GUID string `json:"guid"`
	} `json:"data"`
}

func (r relation) guid() string {
	if r.Data == nil {
		return ""
	}
	return r.Data.GUID
}

// app is what is read of /v3/apps. Older answers name the space by a link only.
type app struct {
	GUID          string `json:"guid"`
	Relationships struct {
		Space relation `json:"space"`
	} `json:"relationships"`
	Links struct {
		Space struct {
			Href string `json:"href"`
		} `json:"space"`
	} `json:"links"`
}

func (a app) space() string {
	if guid := a.Relationships.Space.guid(); guid != "" {
		return guid
	}
	href := a.Links.Space.Href
	return href[strings.LastIndexByte(href, '/')+1:]
}

// role is what is read of /v3/roles.
type role struct {
	Type          string `json:"type"`
	Relationships struct {
		User  relation `json:"user"`
		Space relation `json:"space"`
	} `json:"relationships"`
}
