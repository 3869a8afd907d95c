// Program interop is software of another kind that uses the mesh's identities: go-spiffe on the Workload API, in mTLS with the
// mesh, and on bundle endpoints. Each command prints one line of JSON on success and fails with the reason otherwise.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"
)

// No command takes longer; servers live until they are killed, and never long after whoever forgot to.
const (
	deadline = 20 * time.Second
	lifetime = 5 * time.Minute
)

var commands = map[string]func(context.Context, []string) (any, error){
	"fetch":        fetch,
	"dial":         dial,
	"serve":        serve,
	"fetch-bundle": fetchBundle,
	"serve-bundle": serveBundle,
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "interop:", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if len(arguments) == 0 || commands[arguments[0]] == nil {
		return errors.New("usage: interop fetch|dial|serve|fetch-bundle|serve-bundle …")
	}
	time.AfterFunc(lifetime, func() { os.Exit(1) })
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	answer, err := commands[arguments[0]](ctx, arguments[1:])
	if err != nil {
		return err
	}
	return say(answer)
}

func say(answer any) error {
	return json.NewEncoder(os.Stdout).Encode(answer)
}

// flags are all strings, all required unless they have a default.
func flags(arguments []string, defaults map[string]string) (map[string]string, error) {
	set := flag.NewFlagSet("interop", flag.ContinueOnError)
	given := map[string]*string{}
	for name, value := range defaults {
		given[name] = set.String(name, value, "")
	}
	if err := set.Parse(arguments); err != nil {
		return nil, err
	}
	values := map[string]string{}
	for name, value := range given {
		values[name] = *value
	}
	return values, nil
}
