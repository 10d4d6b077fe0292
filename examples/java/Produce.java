// Sends requests to a lane topic and prints where each one lies: task_id, partition, offset.
// Partitioner: the client's own, murmur2 of the key, so a request keyed by its task_id lies on the task's home partition.
// Run (JDK 17 or newer; JARS holds kafka-clients, jackson-databind and what they need; `triage dev` leaves such a folder in
// ~/.cache/triage/kafka-4.3.1/jars): java -cp "$JARS/*" Produce.java [BOOTSTRAP [LANE_TOPIC [TEXT...]]]

import com.fasterxml.jackson.databind.ObjectMapper;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.Future;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.StringSerializer;

public class Produce {
    public static void main(String[] args) throws Exception {
        String bootstrap = args.length > 0 ? args[0] : "127.0.0.1:9092";
        String topic = args.length > 1 ? args[1] : "triage.requests.normal";
        List<String> texts = args.length > 2 ? List.of(args).subList(2, args.length) : List.of("Name three fruits.");

        ObjectMapper json = new ObjectMapper();
        Map<String, Object> settings = Map.of("bootstrap.servers", bootstrap, "acks", "all");
        try (var producer = new KafkaProducer<>(settings, new StringSerializer(), new ByteArraySerializer())) {
            Map<String, Future<RecordMetadata>> sent = new LinkedHashMap<>();
            for (String text : texts) {
                // Your own id makes sending again harmless: the same id under the same key is the same task, with one outcome.
                String taskId = UUID.randomUUID().toString();
                var request = Map.of("task_id", taskId, "messages", List.of(Map.of("role", "user", "content", text)));
                sent.put(taskId, producer.send(new ProducerRecord<>(topic, taskId, json.writeValueAsBytes(request))));
            }
            for (var entry : sent.entrySet()) {
                RecordMetadata place = entry.getValue().get();
                System.out.println(entry.getKey() + "\t" + place.partition() + "\t" + place.offset());
            }
        }
    }
}
