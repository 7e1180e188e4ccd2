/* A library with NVML's functions that makes its devices up, for tests without a GPU. What they are stands in the file that
 * MOCK_NVML names: lines `key=value`, read anew at every call, so that a test changes a device while somebody looks at it.
 *   init=CODE (nvmlInit's answer)  hang_ms=N (every call takes so long)  count=N  driver=TEXT  cuda=12080  topo.A.B=LEVEL
 *   N.uuid N.name N.memory_mib N.reserved_mib N.used_mib N.busy N.power_mw N.temperature N.throttle N.numa N.lost=CODE
 *   N.ecc N.retired N.retired_pending N.remap_pending N.remap_failure N.links=1,1,2 (where each NVLink ends)
 *   N.procs=PID:MIB:BUSY,...   N.mig=1 N.migs=K, and N.mig.K. as prefix instead of N. for its instances
 *   events=N:XID,N:XID,... (each is told once to whoever waits)                                                            */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, TIMEOUT = 10 };
typedef int R;
typedef unsigned long long u64;
typedef struct { u64 total, free, used; } Memory;
typedef struct { unsigned version; u64 total, reserved, free, used; } Memory2;
typedef struct { unsigned gpu, memory; } Rates;
typedef struct { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; } Process;
typedef struct { unsigned pid; u64 at; unsigned sm, mem, enc, dec; } ProcessUse;
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } Pci;
typedef struct { void *device; u64 type, data; unsigned gpu_instance, compute_instance; } Event;
typedef struct { unsigned sms, copy, dec, enc, jpeg, ofa, gpu_slices, compute_slices; u64 memory_mb; } Attributes;

static int find(const char *key, char *value, size_t size) {
  const char *path = getenv("MOCK_NVML");
  FILE *file = path ? fopen(path, "r") : NULL;
  char line[4096];
  size_t length = strlen(key);
  int found = 0;
  while (file && !found && fgets(line, sizeof line, file))
    if (!strncmp(line, key, length) && line[length] == '=') {
      line[strcspn(line, "\n")] = 0;
      snprintf(value, size, "%s", line + length + 1);
      found = 1;
    }
  if (file) fclose(file);
  return found;
}

static long number(const char *key, long otherwise) {
  char value[64];
  return find(key, value, sizeof value) && *value ? atol(value) : otherwise;
}

/* Handles are numbers: the GPU's plus one, and for a MIG instance a thousand for each of its own. */
static int gpu_of(void *h) { return (int)((long)h % 1000) - 1; }
static int mig_of(void *h) { return (int)((long)h / 1000) - 1; }

static const char *name(void *h, const char *what) {
  static __thread char key[64];
  if (mig_of(h) < 0) snprintf(key, sizeof key, "%d.%s", gpu_of(h), what);
  else snprintf(key, sizeof key, "%d.mig.%d.%s", gpu_of(h), mig_of(h), what);
  return key;
}
static const char *parent(void *h, const char *what) { return name((void *)((long)h % 1000), what); }

static R begin(void *h) {
  long hang = number("hang_ms", 0);
  if (hang) usleep(hang * 1000);
  return h ? (R)number(parent(h, "lost"), OK) : OK;
}
static R asked(void *h, const char *what, long *value) {
  char text[64];
  R code = begin(h);
  if (code) return code;
  if (!find(name(h, what), text, sizeof text)) return NOT_SUPPORTED;
  *value = atol(text);
  return OK;
}
static R text(void *h, const char *what, char *out, unsigned size) {
  R code = begin(h);
  return code ? code : find(name(h, what), out, size) ? OK : NOT_SUPPORTED;
}
static R small(void *h, const char *what, unsigned *out) {
  long value;
  R code = asked(h, what, &value);
  if (!code) *out = (unsigned)value;
  return code;
}

EXPORT R nvmlInitWithFlags(unsigned flags) { (void)flags; begin(NULL); return (R)number("init", OK); }
EXPORT R nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
EXPORT R nvmlShutdown(void) { return OK; }
EXPORT const char *nvmlErrorString(R code) { return code ? "an error of the mock" : "Success"; }
EXPORT R nvmlDeviceGetCount_v2(unsigned *n) { begin(NULL); *n = (unsigned)number("count", 0); return (R)number("init", OK); }
EXPORT R nvmlSystemGetDriverVersion(char *out, unsigned size) { return find("driver", out, size) ? OK : NOT_SUPPORTED; }
EXPORT R nvmlSystemGetCudaDriverVersion(int *v) { *v = (int)number("cuda", 12080); return OK; }
EXPORT R nvmlSystemGetCudaDriverVersion_v2(int *v) { return nvmlSystemGetCudaDriverVersion(v); }
EXPORT R nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) {
  if (i >= (unsigned)number("count", 0)) return INVALID;
  *h = (void *)(long)(i + 1);
  return begin(*h);
}
EXPORT R nvmlDeviceGetHandleByUUID(const char *uuid, void **h) {
  char there[96];
  for (long i = 0; i < number("count", 0); i++)
    for (long k = -1; k < number(parent((void *)(i + 1), "migs"), 0); k++) {
      void *one = (void *)(i + 1 + 1000 * (k + 1));
      if (find(name(one, "uuid"), there, sizeof there) && !strcmp(there, uuid)) { *h = one; return begin(one); }
    }
  return NOT_FOUND;
}
EXPORT R nvmlDeviceGetUUID(void *h, char *out, unsigned size) { return text(h, "uuid", out, size); }
EXPORT R nvmlDeviceGetName(void *h, char *out, unsigned size) { return text(h, "name", out, size); }
EXPORT R nvmlDeviceGetNumaNodeId(void *h, unsigned *out) { return small(h, "numa", out); }
EXPORT R nvmlDeviceGetPciInfo_v3(void *h, Pci *pci) {
  R code = begin(h);
  memset(pci, 0, sizeof *pci);
  pci->bus = (unsigned)gpu_of(h) + 1;
  snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02X:00.0", pci->bus);
  return code;
}

EXPORT R nvmlDeviceGetMemoryInfo_v2(void *h, Memory2 *m) {
  R code = begin(h);
  m->total = (u64)number(name(h, "memory_mib"), 0) << 20;
  m->reserved = (u64)number(name(h, "reserved_mib"), 0) << 20;
  m->used = (u64)number(name(h, "used_mib"), 0) << 20;
  m->free = m->total - m->used - m->reserved;
  return code;
}
EXPORT R nvmlDeviceGetMemoryInfo(void *h, Memory *m) {
  Memory2 both;
  R code = nvmlDeviceGetMemoryInfo_v2(h, &both);
  m->total = both.total; m->free = both.free; m->used = both.used + both.reserved;
  return code;
}
EXPORT R nvmlDeviceGetUtilizationRates(void *h, Rates *u) { u->memory = 0; return mig_of(h) < 0 ? small(h, "busy", &u->gpu) : NOT_SUPPORTED; }
EXPORT R nvmlDeviceGetPowerUsage(void *h, unsigned *mw) { return small(h, "power_mw", mw); }
EXPORT R nvmlDeviceGetTemperature(void *h, unsigned sensor, unsigned *c) { (void)sensor; return small(h, "temperature", c); }
EXPORT R nvmlDeviceGetCurrentClocksEventReasons(void *h, u64 *out) { long v = 0; R code = asked(h, "throttle", &v); *out = (u64)v; return code; }
EXPORT R nvmlDeviceGetTotalEccErrors(void *h, unsigned type, unsigned counter, u64 *out) {
  long v = 0;
  R code = type == 1 && counter == 0 ? asked(h, "ecc", &v) : NOT_SUPPORTED;
  *out = (u64)v;
  return code;
}
EXPORT R nvmlDeviceGetRetiredPages(void *h, unsigned cause, unsigned *n, u64 *pages) {
  long v = 0;
  R code = cause == 1 ? asked(h, "retired", &v) : NOT_SUPPORTED;
  if (code) return code;
  unsigned room = *n;
  *n = (unsigned)v;
  if (!pages || room < *n) return *n ? TOO_SMALL : OK;
  memset(pages, 0, *n * sizeof *pages);
  return OK;
}
EXPORT R nvmlDeviceGetRetiredPagesPendingStatus(void *h, unsigned *out) { return small(h, "retired_pending", out); }
EXPORT R nvmlDeviceGetRemappedRows(void *h, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
  *corrected = *uncorrected = 0;
  R code = small(h, "remap_pending", pending);
  return code ? code : small(h, "remap_failure", failed);
}

/* PID:MIB:BUSY, with the third of it only where somebody asks for it */
static int processes(void *h, Process *out, ProcessUse *use, int room) {
  char list[3000], *save = NULL;
  int n = 0;
  if (!find(name(h, "procs"), list, sizeof list)) return 0;
  for (char *one = strtok_r(list, ",", &save); one; one = strtok_r(NULL, ",", &save), n++) {
    unsigned pid = 0, mib = 0, busy = 0;
    sscanf(one, "%u:%u:%u", &pid, &mib, &busy);
    if (n >= room) continue;
    if (out) out[n] = (Process){pid, (u64)mib << 20, ~0u, ~0u};
    if (use) use[n] = (ProcessUse){pid, 1, busy, 0, 0, 0};
  }
  return n;
}
EXPORT R nvmlDeviceGetComputeRunningProcesses_v3(void *h, unsigned *n, Process *out) {
  R code = begin(h);
  if (code) return code;
  unsigned room = *n;
  *n = (unsigned)processes(h, out, NULL, (int)room);
  return *n > room ? TOO_SMALL : OK;
}
EXPORT R nvmlDeviceGetGraphicsRunningProcesses_v3(void *h, unsigned *n, Process *out) { (void)h; (void)out; *n = 0; return OK; }
EXPORT R nvmlDeviceGetProcessUtilization(void *h, ProcessUse *out, unsigned *n, u64 since) {
  (void)since;
  R code = begin(h);
  if (code) return code;
  unsigned room = *n;
  *n = (unsigned)processes(h, NULL, out, out ? (int)room : 0);
  return !*n ? NOT_FOUND : !out || *n > room ? TOO_SMALL : OK;
}

EXPORT R nvmlDeviceGetTopologyCommonAncestor(void *a, void *b, unsigned *level) {
  char key[64];
  int x = gpu_of(a), y = gpu_of(b);
  snprintf(key, sizeof key, "topo.%d.%d", x < y ? x : y, x < y ? y : x);
  *level = (unsigned)number(key, 50);
  return begin(a);
}
static int link_end(void *h, unsigned link) {
  char list[256], *save = NULL;
  if (!find(name(h, "links"), list, sizeof list)) return -1;
  char *one = strtok_r(list, ",", &save);
  while (one && link--) one = strtok_r(NULL, ",", &save);
  return one ? atoi(one) : -1;
}
EXPORT R nvmlDeviceGetNvLinkState(void *h, unsigned link, unsigned *active) {
  *active = 1;
  return link_end(h, link) < 0 ? NOT_SUPPORTED : begin(h);
}
EXPORT R nvmlDeviceGetNvLinkRemotePciInfo_v2(void *h, unsigned link, Pci *pci) {
  int end = link_end(h, link);
  return end < 0 ? NOT_SUPPORTED : nvmlDeviceGetPciInfo_v3((void *)(long)(end + 1), pci);
}

EXPORT R nvmlDeviceGetMigMode(void *h, unsigned *now, unsigned *pending) { R code = small(h, "mig", now); *pending = *now; return code; }
EXPORT R nvmlDeviceGetMaxMigDeviceCount(void *h, unsigned *n) { *n = 7; return begin(h); }
EXPORT R nvmlDeviceGetMigDeviceHandleByIndex(void *h, unsigned k, void **out) {
  if (k >= (unsigned)number(parent(h, "migs"), 0)) return NOT_FOUND;
  *out = (void *)((long)h + 1000 * ((long)k + 1));
  return begin(h);
}

typedef struct { int told; } Set;
EXPORT R nvmlEventSetCreate(void **set) { *set = calloc(1, sizeof(Set)); return OK; }
EXPORT R nvmlEventSetFree(void *set) { free(set); return OK; }
EXPORT R nvmlDeviceRegisterEvents(void *h, u64 types, void *set) { (void)types; (void)set; return begin(h); }
EXPORT R nvmlEventSetWait_v2(void *set, Event *event, unsigned ms) {
  for (unsigned waited = 0;; waited += 10) {
    char list[1024], *save = NULL;
    int n = 0;
    if (find("events", list, sizeof list))
      for (char *one = strtok_r(list, ",", &save); one; one = strtok_r(NULL, ",", &save))
        if (n++ == ((Set *)set)->told) {
          long gpu = 0, xid = 0;
          sscanf(one, "%ld:%ld", &gpu, &xid);
          ((Set *)set)->told++;
          *event = (Event){(void *)(gpu + 1), 8, (u64)xid, ~0u, ~0u};
          return OK;
        }
    if (waited >= ms) return TIMEOUT;
    usleep(10000);
  }
}
