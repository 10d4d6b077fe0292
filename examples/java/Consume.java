// Prints the outcomes of one tenant's tasks, of the IDs given or all: task_id, partition, outcome, and a completed one's result as JSON.
// Ends when every ID given has its outcome (exit 0), or after TIMEOUT_S seconds (environment, default 30; exit 1 if one is missing).
// It reads every partition from the beginning, so it has no partitioner. Run (JARS as in Produce.java):
// java -cp "$JARS/*" Consume.java [BOOTSTRAP [RESULTS_TOPIC [TENANT [ID...]]]]

import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.TimeoutException;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.StringDeserializer;

public class Consume {
    record Task(String id, int partition) {}

    public static void main(String[] args) {
        String bootstrap = args.length > 0 ? args[0] : "127.0.0.1:9092";
        String topic = args.length > 1 ? args[1] : "triage.results";
        String tenant = args.length > 2 ? args[2] : "default";
        Set<String> wanted = new TreeSet<>(args.length > 3 ? List.of(args).subList(3, args.length) : List.of());
        Set<String> missing = new TreeSet<>(wanted);
        String timeoutS = System.getenv().getOrDefault("TIMEOUT_S", "30");

        Set<Task> seen = new HashSet<>();
        Map<String, Object> settings = Map.of(
            "bootstrap.servers", bootstrap, "isolation.level", "read_committed", "enable.auto.commit", false);
        try (var consumer = new KafkaConsumer<>(settings, new StringDeserializer(), new StringDeserializer())) {
            List<TopicPartition> places = consumer.partitionsFor(topic).stream()
                .map(place -> new TopicPartition(topic, place.partition())).toList();
            consumer.assign(places);
            consumer.seekToBeginning(places);
            long end = System.nanoTime() + (long) (Double.parseDouble(timeoutS) * 1e9);
            while ((wanted.isEmpty() || !missing.isEmpty()) && System.nanoTime() < end) {
                for (ConsumerRecord<String, String> found : consumer.poll(Duration.ofMillis(200))) {
                    if (!tenant.equals(header(found, "triage.tenant"))) {
                        continue; // by the header: the value is not parsed
                    }
                    if (!wanted.isEmpty() && !wanted.contains(found.key())) {
                        continue;
                    }
                    // The first record of (task_id, partition) in offset order is the outcome, for ever.
                    // So look whether it is the first before you look at the outcome.
                    if (seen.add(new Task(found.key(), found.partition()))) {
                        String outcome = header(found, "triage.outcome");
                        String value = "completed".equals(outcome) ? found.value() : "";
                        System.out.println(found.key() + "\t" + found.partition() + "\t" + outcome + "\t" + value);
                        missing.remove(found.key());
                    }
                }
            }
        } catch (TimeoutException unreachable) {
            System.err.println(unreachable.getMessage());
        }
        if (!missing.isEmpty()) {
            System.err.printf("no outcome within %s s: %s%n", timeoutS, String.join(" ", missing));
            System.exit(1);
        }
    }

    private static String header(ConsumerRecord<?, ?> found, String name) {
        for (Header header : found.headers().headers(name)) {
            return new String(header.value(), StandardCharsets.UTF_8); // the first of a name counts
        }
        return null;
    }
}
