/*
 * A stand-in for libnvidia-ml.so.1, so that the real nvidia-ml-py is tested through the ABI it was made for.
 *
 * What it answers stands in the text file that FAKE_NVML names, read anew at each call: a `key=value` a line.
 *
 *   init.fail=9                    nvmlInit returns that code
 *   count=2                        taken over at nvmlInit only, as a driver does
 *   0.uuid= 0.name= 0.total= ...   readings of card 0; a number that is not there is 0
 *   0.fail=15                      every call on card 0 returns that code (15: lost)
 *   0.fail.PowerUsage=3            that call alone
 *   0.hang=PowerUsage              that call does not return until the line is gone
 *   0.xid=79  0.xid.serial=1       an event, once per serial and event set
 *   0.pids=2 0.pid.0= 0.pid.0.used=   processes; pid.<n>.name= is asked by number
 *   0.mig=1 0.mig.count=7 0/0.uuid= 0/0.total= ...   instance 0 of card 0; one without a uuid is not there
 *
 * Built with -DOLD_DRIVER it lacks the calls that newer drivers have. Structs and codes are those that pynvml declares.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long long u64;
typedef struct { char prefix[32]; } Device;
typedef struct { Device *device; char serial[32]; } EventSet;
typedef struct { Device *device; u64 type, data; unsigned gpu_instance, compute_instance; } EventData;
typedef struct { u64 total, free, used; } Memory;
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct { unsigned version; int sensor; int temperature; } TemperatureV1;
typedef struct { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; } Process;

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, TIMEOUT = 10 };

static unsigned opened, count;
static Device cards[32], instances[32][8];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Copies the value of `key` and says whether it is there. */
static int find(const char *key, char *value, size_t size) {
  const char *path = getenv("FAKE_NVML");
  char line[512];
  int found = 0;
  pthread_mutex_lock(&lock);
  FILE *file = path ? fopen(path, "r") : NULL;
  while (file && !found && fgets(line, sizeof line, file)) {
    char *equals = strchr(line, '=');
    if (!equals) continue;
    *equals = 0;
    if (strcmp(line, key)) continue;
    equals[1 + strcspn(equals + 1, "\n")] = 0;
    snprintf(value, size, "%s", equals + 1);
    found = 1;
  }
  if (file) fclose(file);
  pthread_mutex_unlock(&lock);
  return found;
}

static int text(const Device *device, const char *name, char *value, size_t size) {
  char key[96];
  snprintf(key, sizeof key, "%s.%s", device->prefix, name);
  return find(key, value, size);
}

static u64 number(const Device *device, const char *name) {
  char value[64];
  return text(device, name, value, sizeof value) ? strtoull(value, NULL, 0) : 0;
}

/* Every call on a card begins here: it may hang, or fail with a code. */
static int enter(const Device *device, const char *call) {
  char value[64], key[64];
  if (!opened) return UNINITIALIZED;
  while (text(device, "hang", value, sizeof value) && !strcmp(value, call)) usleep(2000);
  if (text(device, "fail", value, sizeof value)) return atoi(value);
  snprintf(key, sizeof key, "fail.%s", call);
  return text(device, key, value, sizeof value) ? atoi(value) : OK;
}

static int copy(const Device *device, const char *name, char *out, unsigned size) {
  memset(out, 0, size);
  return text(device, name, out, size) ? OK : NOT_SUPPORTED;
}

int nvmlInitWithFlags(unsigned flags) {
  char value[64];
  (void)flags;
  if (find("init.fail", value, sizeof value)) return atoi(value);
  count = find("count", value, sizeof value) ? (unsigned)atoi(value) : 0;
  opened++;
  return OK;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return opened ? (opened--, OK) : UNINITIALIZED; }

const char *nvmlErrorString(int code) {
  static char said[32];
  snprintf(said, sizeof said, "NVML code %d", code);
  return said;
}

int nvmlDeviceGetCount_v2(unsigned *found) {
  char value[64];
  if (!opened) return UNINITIALIZED;
  if (find("count.fail", value, sizeof value)) return atoi(value);
  *found = count;
  return OK;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device) {
  if (index >= count || index >= 32) return INVALID;
  snprintf(cards[index].prefix, sizeof cards[index].prefix, "%u", index);
  *device = &cards[index];
  return enter(*device, "HandleByIndex");
}
int nvmlDeviceGetUUID(Device *device, char *out, unsigned size) {
  int code = enter(device, "UUID");
  return code ? code : copy(device, "uuid", out, size);
}
int nvmlDeviceGetName(Device *device, char *out, unsigned size) {
  int code = enter(device, "Name");
  return code ? code : copy(device, "name", out, size);
}
int nvmlDeviceGetMemoryInfo(Device *device, Memory *memory) {
  int code = enter(device, "MemoryInfo");
  memory->total = number(device, "total");
  memory->used = number(device, "used");
  memory->free = memory->total - memory->used;
  return code;
}
int nvmlDeviceGetUtilizationRates(Device *device, Utilization *rates) {
  int code = enter(device, "UtilizationRates");
  rates->gpu = (unsigned)number(device, "utilization");
  rates->memory = 0;
  return code;
}
#define NUMBER(call, key, type)                       \
  int nvmlDeviceGet##call(Device *device, type *out) { \
    int code = enter(device, #call);                   \
    *out = (type)number(device, key);                  \
    return code;                                       \
  }
NUMBER(PowerUsage, "power", unsigned)
NUMBER(TotalEnergyConsumption, "energy", u64)
NUMBER(CurrentClocksThrottleReasons, "reasons", u64)
int nvmlDeviceGetTemperature(Device *device, unsigned sensor, unsigned *out) {
  int code = enter(device, "Temperature");
  (void)sensor;
  *out = (unsigned)number(device, "temperature");
  return code;
}
#ifndef OLD_DRIVER
NUMBER(CurrentClocksEventReasons, "reasons", u64)
int nvmlDeviceGetTemperatureV(Device *device, TemperatureV1 *out) {
  int code = enter(device, "TemperatureV");
  if (out->version != 0x100000C) return INVALID;
  out->temperature = (int)number(device, "temperature");
  return code;
}
#endif
int nvmlDeviceGetTemperatureThreshold(Device *device, unsigned which, unsigned *out) {
  int code = enter(device, "TemperatureThreshold");
  *out = (unsigned)number(device, "slowdown");
  return code ? code : which == 1 && *out ? OK : NOT_SUPPORTED;
}
int nvmlDeviceGetClockInfo(Device *device, unsigned which, unsigned *out) {
  int code = enter(device, "ClockInfo");
  *out = (unsigned)number(device, "clock");
  return code ? code : which == 1 ? OK : INVALID;
}

static int processes(Device *device, unsigned *size, Process *out) {
  int code = enter(device, "ComputeRunningProcesses");
  unsigned running = (unsigned)number(device, "pids");
  if (code || !running) return *size = 0, code;
  if (*size < running) return *size = running, TOO_SMALL;
  for (unsigned n = 0; n < running; n++) {
    char key[32];
    snprintf(key, sizeof key, "pid.%u", n);
    out[n].pid = (unsigned)number(device, key);
    snprintf(key, sizeof key, "pid.%u.used", n);
    out[n].used = number(device, key);
    out[n].gpu_instance = out[n].compute_instance = 0xFFFFFFFF;
  }
  *size = running;
  return OK;
}
int nvmlDeviceGetComputeRunningProcesses_v2(Device *d, unsigned *size, Process *out) { return processes(d, size, out); }
#ifndef OLD_DRIVER
int nvmlDeviceGetComputeRunningProcesses_v3(Device *d, unsigned *size, Process *out) { return processes(d, size, out); }
#endif
int nvmlSystemGetProcessName(unsigned pid, char *out, unsigned size) {
  char key[32];
  snprintf(key, sizeof key, "pid.%u.name", pid);
  memset(out, 0, size);
  return find(key, out, size) ? OK : NOT_FOUND;
}

int nvmlDeviceGetTotalEccErrors(Device *device, unsigned error, unsigned counter, u64 *out) {
  int code = enter(device, "TotalEccErrors");
  *out = number(device, "ecc");
  return code ? code : error == 1 && counter == 0 ? OK : INVALID;
}
int nvmlDeviceGetRemappedRows(Device *device, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failure) {
  int code = enter(device, "RemappedRows");
  *corrected = *uncorrected = *pending = 0;
  *failure = (unsigned)number(device, "remap.failure");
  return code;
}
int nvmlEventSetCreate(EventSet **set) { return (*set = calloc(1, sizeof **set)) ? OK : 999; }
int nvmlEventSetFree(EventSet *set) { return free(set), OK; }
int nvmlDeviceRegisterEvents(Device *device, u64 types, EventSet *set) {
  int code = enter(device, "RegisterEvents");
  if (!code && !(types & 8)) return INVALID;
  set->device = device;
  text(device, "xid.serial", set->serial, sizeof set->serial); /* what was before is not told */
  return code;
}
int nvmlEventSetWait_v2(EventSet *set, EventData *data, unsigned timeout_ms) {
  char serial[32];
  (void)timeout_ms;
  if (!set->device || !text(set->device, "xid.serial", serial, sizeof serial) || !strcmp(serial, set->serial)) return TIMEOUT;
  strcpy(set->serial, serial);
  *data = (EventData){set->device, 8, number(set->device, "xid"), 0, 0};
  return OK;
}

int nvmlDeviceGetMigMode(Device *device, unsigned *current, unsigned *pending) {
  char value[8];
  int code = enter(device, "MigMode");
  *current = *pending = (unsigned)number(device, "mig");
  return code ? code : text(device, "mig", value, sizeof value) ? OK : NOT_SUPPORTED;
}
int nvmlDeviceGetMaxMigDeviceCount(Device *device, unsigned *out) {
  int code = enter(device, "MaxMigDeviceCount");
  *out = (unsigned)number(device, "mig.count");
  return code;
}
int nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned index, Device **instance) {
  char value[96];
  int code = enter(device, "MigDeviceHandleByIndex");
  Device *found = &instances[device - cards][index % 8];
  snprintf(found->prefix, sizeof found->prefix, "%.16s/%u", device->prefix, index % 8);
  *instance = found;
  return code ? code : text(found, "uuid", value, sizeof value) ? OK : NOT_FOUND;
}
