// Consume prints the outcomes of one tenant's tasks, of the IDs given or all: task_id, partition, outcome, and a completed one's result as JSON.
// It ends when every ID given has its outcome (exit 0), or after TIMEOUT_S seconds (environment, default 30; exit 1 if an ID
// is missing). It reads every partition from the beginning, so it has no partitioner.
// Run: go run ./consume [BOOTSTRAP [RESULTS_TOPIC [TENANT [ID...]]]]
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

type task struct {
	id        string
	partition int32
}

func main() {
	arguments := []string{"127.0.0.1:9092", "triage.results", "default"}
	copy(arguments, os.Args[1:])
	bootstrap, topic, tenant := arguments[0], arguments[1], arguments[2]
	wanted := map[string]bool{}
	for _, id := range os.Args[min(4, len(os.Args)):] {
		wanted[id] = true
	}
	timeout := 30 * time.Second
	if text := os.Getenv("TIMEOUT_S"); text != "" {
		var err error
		if timeout, err = time.ParseDuration(text + "s"); err != nil {
			log.Fatal(err)
		}
	}

	client, err := kgo.NewClient(
		kgo.SeedBrokers(bootstrap),
		kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
	)
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	missing := follow(ctx, client, tenant, wanted)
	cancel()
	client.Close()
	if len(missing) > 0 {
		log.SetFlags(0)
		log.Fatalf("no outcome within %g s: %s", timeout.Seconds(), strings.Join(slices.Sorted(maps.Keys(missing)), " "))
	}
}

// follow prints outcomes until all wanted ones have come, without any wanted until the time-out; it returns the missing ones.
func follow(ctx context.Context, client *kgo.Client, tenant string, wanted map[string]bool) map[string]bool {
	missing, seen := maps.Clone(wanted), map[task]bool{}
	for len(missing) > 0 || len(wanted) == 0 {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			break
		}
		fetches.EachError(func(topic string, partition int32, err error) {
			if !errors.Is(err, context.DeadlineExceeded) {
				log.Printf("%s %d: %v", topic, partition, err)
			}
		})
		fetches.EachRecord(func(record *kgo.Record) {
			if header(record, "triage.tenant") != tenant {
				return // by the header: the value is not parsed
			}
			// The first record of (task_id, partition) in offset order is the outcome, for ever.
			// So look whether it is the first before you look at the outcome.
			this := task{string(record.Key), record.Partition}
			if seen[this] || (len(wanted) > 0 && !wanted[this.id]) {
				return
			}
			seen[this] = true
			outcome, value := header(record, "triage.outcome"), ""
			if outcome == "completed" {
				value = string(record.Value)
			}
			fmt.Printf("%s\t%d\t%s\t%s\n", this.id, this.partition, outcome, value)
			delete(missing, this.id)
		})
	}
	return missing
}

// header returns the first header of that name, "" when there is none.
func header(record *kgo.Record, name string) string {
	for _, header := range record.Headers {
		if header.Key == name {
			return string(header.Value)
		}
	}
	return ""
}
