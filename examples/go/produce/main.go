// Produce sends requests to a lane topic and prints where each one lies: task_id, partition, offset.
// Partitioner: franz-go's default, said explicitly below: murmur2 of the key as in Java, so a request keyed by its task_id
// lies on the task's home partition.
// Run: go run ./produce [BOOTSTRAP [LANE_TOPIC [TEXT...]]]
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log"
	"os"

	"github.com/twmb/franz-go/pkg/kgo"
)

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

type request struct {
	TaskID   string    `json:"task_id"`
	Messages []message `json:"messages"`
}

func main() {
	bootstrap, topic, texts := "127.0.0.1:9092", "triage.requests.normal", []string{"Name three fruits."}
	if len(os.Args) > 1 {
		bootstrap = os.Args[1]
	}
	if len(os.Args) > 2 {
		topic = os.Args[2]
	}
	if len(os.Args) > 3 {
		texts = os.Args[3:]
	}

	client, err := kgo.NewClient(
		kgo.SeedBrokers(bootstrap),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)), // nil: murmur2
	)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	var records []*kgo.Record
	for _, text := range texts {
		// Your own id makes sending again harmless: the same id under the same key is the same task, with one outcome.
		taskID := rand.Text()
		value, err := json.Marshal(request{taskID, []message{{"user", text}}})
		if err != nil {
			log.Fatal(err)
		}
		records = append(records, &kgo.Record{Topic: topic, Key: []byte(taskID), Value: value})
	}
	for _, sent := range client.ProduceSync(context.Background(), records...) {
		if sent.Err != nil {
			log.Fatal(sent.Err)
		}
		fmt.Printf("%s\t%d\t%d\n", sent.Record.Key, sent.Record.Partition, sent.Record.Offset)
	}
}
