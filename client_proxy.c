/* See LICENSE file for copyright and license details.
 *
 * client_proxy is an XMPP component (XEP-0114) behind whose address stand
 * the resources of one ordinary account, the target. It learns from the
 * target's presence which of them are online, hands each IQ request to one
 * of them, with the requester's address as the resource of `from', and leads
 * the answer back by that address (JAT, Jabber Address Translation).
 *
 * Data flows one way, and the file is written in the opposite order, as each
 * function uses only what stands above it:
 *
 *	socket -> expat -> stanza (fixed tree) -> route -> out buffer -> socket
 */
#define _POSIX_C_SOURCE 200809L

#include <sys/resource.h>
#include <sys/socket.h>

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <bearssl.h>
#include <expat.h>

enum { RANDOM, STICKY, LEASTBUSY, STANDBY }; /* how to choose among resources */

#include "config.h"

#define LEN(x)        (sizeof(x) / sizeof((x)[0]))
#define MIN(a, b)     ((a) < (b) ? (a) : (b))
#define MAX(a, b)     ((a) > (b) ? (a) : (b))
#define AFTER(s)      (now + (s) * 1000LL) /* so many seconds from now */

/* times that no clock reaches */
#define NEVER         (LLONG_MAX - 1)
#define UNWRITTEN     LLONG_MAX       /* not begun: still in out, or it did not arrive */

#define NS_COMPONENT  "jabber:component:accept"
#define NS_CARBONS    "urn:xmpp:carbons:2"
#define NS_STREAM     "http://etherx.jabber.org/streams"
#define NS_STANZAS    "urn:ietf:params:xml:ns:xmpp-stanzas"

enum {
	PARTMAX  = 1023,            /* bytes of each part of a JID, RFC 7622 3.1 */
	BAREMAX  = 2 * PARTMAX + 1,
	JIDMAX   = 3 * PARTMAX + 5, /* with what encode() writes before it gives up */
	OWNROOM  = 8192,            /* bytes of the out buffer for pings, probes and the end */
	PADABOVE = 2048,            /* bytes of a tag: white space follows a larger one */
	FIRSTPAUSE = 1000,          /* ms before the first reconnect, at most */
	CLOSETIME  = 500,           /* ms for the last bytes, then the socket is closed */
	WRITETIME  = 200,           /* ms between attempts to write while we may not read */
	TIMEMAX    = 30 * 86400,    /* s, of any setting */
	LINEMAX    = 512,           /* bytes of a log line: a pipe takes all or none */
	SHOWN      = sizeof(target) + 99, /* bytes of a resource's JID in the log */
	LINERATE   = 20,            /* lines of the log that others may cause in a second */
	SHARES     = 4096           /* places for counts: two hardly ever share both of theirs */
};

/* One stanza must fit with what else has to go out, and so must the header of
 * our stream before it: until TLS is up, that waits while we read. */
typedef char outsize_is_too_small[OUTSIZE >= MAXSTANZA + 2 * OWNROOM ? 1 : -1];
typedef char requestsize_is_too_small[REQUESTSIZE > 0 ? 1 : -1];
typedef char maxresources_is_too_small[MAXRESOURCES > 0 ? 1 : -1];
typedef char maxrequests_is_too_small[MAXREQUESTS > 0 ? 1 : -1];
/* so must ours: both addresses, a resource, and as much white space */
typedef char maxstanza_is_too_small[MAXSTANZA >= 4096 &&
	MAXSTANZA >= 2 * (sizeof(domain) + sizeof(target)) + 3000 ? 1 : -1];
typedef char insize_is_too_small[INSIZE > 0 ? 1 : -1];
typedef char parserhard_is_too_small[PARSERHARD >= MAX(PARSERSOFT, 65536) ? 1 : -1];

/* Bytes in a fixed place, with one more for the NUL that follows what was put there;
 * lost: 1 once some did not fit. */
typedef struct {
	char *s;
	size_t size, len, lost;
} Buffer;

/* An element, and where in the stanza's body its name and namespace lie and its
 * tag ends. What is in it follows it, and is deeper. */
typedef struct {
	int depth;
	char *name, *end;
	const char *ns;
} Node;

/* The states of the connection. */
enum { WAITING, RESOLVING, CONNECTING, OPENING, ONLINE, CLOSING };

/* Why requests are refused, how it is said (RFC 6120 8.3.3), how often. */
enum { NOBODY, UNKNOWN, LONGADDRESS, LARGE, BUSY, GONE, LATE, ILLEGAL };
static struct {
	const char *type, *condition;
	unsigned long n;
} refusals[] = {
	[NOBODY]      = { "cancel", "service-unavailable", 0 },
	[UNKNOWN]     = { "cancel", "feature-not-implemented", 0 },
	[LONGADDRESS] = { "modify", "not-acceptable", 0 },
	[LARGE]       = { "modify", "policy-violation", 0 },
	[BUSY]        = { "wait", "resource-constraint", 0 },
	[GONE]        = { "wait", "recipient-unavailable", 0 },
	[LATE]        = { "wait", "remote-server-timeout", 0 },
	[ILLEGAL]     = { "modify", "bad-request", 0 },
};
static struct {
	unsigned long requests, untracked, answers, late, messages, dropped, connections;
} count;
static unsigned long long bytesin, bytesout;

/* clock and choice */
static long long now;           /* ms, monotonic, taken once a turn of the loop */
static uint64_t seed, salt;     /* of the next choice; of the table of requests */

/* the log */
static int nlines;              /* that others have caused in this second */
static unsigned long nunsaid;   /* lines that are missing or cut */
static int torn;                /* the log ends in a part of a line */
static long long linetime;      /* when this second is over */

/* resources of the target that are online, and those last found, by marks */
typedef struct {
	uint64_t mark;              /* hash of its name */
	int open;                   /* requests that it has not answered */
	int missed;                 /* probes in a row that it has not answered yet */
	int drains;                 /* it shows dnd */
	int pings;                  /* since its last sign of life; 2: it is stalled */
	int unread;                 /* the server may not have read the last of them */
	int trialat;                /* when they are more it is to be tried with a get; three
	                             * later, with any request */
	long long steptime;         /* ms: of its last sign of life, ping or trial, or its
	                             * first request; when the server surely had the ping,
	                             * or a slow ping to ourselves was back */
	unsigned long nhanded, nanswered, nretried, nlate;
	unsigned long long waited;  /* ms, for its answers */
	char jid[sizeof(target) + PARTMAX + 1]; /* the target, a slash, its name */
} Resource;
static Resource resources[MAXRESOURCES], *marks[8 * MAXRESOURCES];
static int nresources, toomany;
static Resource *trial;         /* the stalled one to be tried next, if it still is one */

/* who was served lately, in a place by hash; by whom; how long that counts */
static struct stick {
	uint64_t who, mark;
	long long until;
} sticks[MAXREQUESTS];

/* Requests that were handed out and have no answer yet. Each slot that was ever
 * used is in the bucket of its key and in one list: that of free ones; of open
 * requests, the oldest first; or of those that have failed. An empty list is just its
 * head; that of open requests is never due. */
enum { FREE, OPEN, FAILED };
typedef struct request Request;
static struct request {
	int list;
	int hasid;
	int tries;                  /* how often it may still be handed on; -1: never */
	int bounced;                /* its holder's server has sent it back */
	Request *prev, *next, *chain; /* in its list; in the bucket of its key */
	Resource *holder;           /* that has it or has failed it, if it is online */
	Resource *asker;            /* that has asked it of a user */
	uint64_t key;               /* hash of requester, address asked and id */
	uint64_t share;             /* hash of the requester's bare JID */
	size_t largest;             /* bytes of the largest tag in its content */
	long long handed;           /* ms, to its resource */
	long long due;              /* its answer, in ms; UNWRITTEN: still in out; 0: it
	                             * has not come in time; -1: it came in a jam */
} requests[MAXREQUESTS], *buckets[MAXREQUESTS];
static Request lists[] = {
	[FREE] = { .prev = lists + FREE, .next = lists + FREE },
	[OPEN] = { .prev = lists + OPEN, .next = lists + OPEN, .due = NEVER },
	[FAILED] = { .prev = lists + FAILED, .next = lists + FAILED }
};
/* of each: requester, address, id, and content if it fits; or "" */
static char texts[MAXREQUESTS][REQUESTSIZE];
static int nused;               /* of the table so far */
static int nopen, shedding;     /* without an answer; some were refused lately */
static int shares[2][SHARES];   /* of nopen, each requester's: the less of two places */
/* keys of requests that were answered, so that another answer is recognised: the
 * last of each bucket; that of MAXREQUESTS keys more fall into one is next to
 * impossible */
static uint64_t answered[MAXREQUESTS][16];

/* the target's presence: the id of what we have asked last, and when; when to ask next
 * if no probe is out, the pause after that; when an error of a worker may start a
 * probe again; whether the subscription is granted */
static struct { char id[16]; long long time, next, pause, extra; int granted; } ask;
static long long sweeptime;     /* when the probe that is out is over; 0: the server has
                                 * not read it yet; NEVER: none is out; UNWRITTEN: nor
                                 * is one, as what we asked could not reach the target */
static int seen;                /* presence came since, 2: from who was there before */
static int second;              /* the probe, or the next, is for who missed the last */
static int unanswered;          /* nobody has answered the last probe that counts */
/* how the ids of our pings to ourselves begin on this connection; when the next may go
 * out for what is due; when somebody may have been silent for too long; when the last
 * of them that counts was sent, and when it was back; when the very last was sent, and
 * how many have not come back; whether it was said that some went elsewhere */
static struct {
	char id[16];
	long long next, check, sent, back, last;
	int nout, shared;
} due;

/* the out buffer: what is behind outpos waits to be written */
static Buffer out = { (char [OUTSIZE + 1]){ "" }, OUTSIZE, 0, 0 };
static size_t outpos;
static long long jamtime;       /* ms: from then on the server is too slow */
static int jammed;              /* it was: refuse until all of out is written */

/* the stanza that is being read: attrs holds what has a name in st, body all
 * else, as it goes out; and the elements in it, two levels deep: the first is
 * the stanza itself, the last any that is not looked at */
static Buffer attrs = { (char [MAXSTANZA + 1]){ "" }, MAXSTANZA, 0, 0 };
static Buffer body = { (char [MAXSTANZA + 1]){ "" }, MAXSTANZA, 0, 0 };
static Node nodes[257];
static struct {
	const char *kind, *from, *to, *type, *id, *ns;
	int nnodes;
	size_t tagend;              /* where the last start tag in body has ended */
	size_t largest;             /* bytes of its largest tag, but for what is in attrs */
	/* what handlestanza() finds out about it */
	char self[BAREMAX + 1];     /* our address that it is for, without a resource */
	const char *resource;       /* of that address, from the slash on; or NULL */
	char other[PARTMAX + 1];    /* the JID that the resource encodes, or "" */
	int iq;                     /* that is its kind */
	int error;                  /* that is its type */
	int fromtarget;             /* it is from the target, */
	const char *name;           /* from this resource of it, from the slash on; or NULL */
	Resource *sender;           /* that resource, if it is online */
} st;

/* the parser and its input */
static XML_Parser parser;
static size_t heap;             /* bytes that expat has allocated */
static Buffer in = { (char [INSIZE]){ "" }, INSIZE, 0, 0 };
static XML_Index parsed;        /* bytes the parser took before those in `in' */
static int depth, suspended;    /* of its elements; it has not parsed all of `in' */
static const char *ending;      /* why the stream has to end; NULL: it goes on */

/* the stream */
static Buffer decls = { (char [1024 + 1]){ "" }, 1024, 0, 0 }; /* of its header */

/* TLS, if tlspin is not empty */
static char pins[8 * 96 + 1];   /* as in XX:XX:, up to a NUL */
static struct {
	br_ssl_client_context client;
	unsigned char records[BR_SSL_BUFSIZE_BIDI];
	br_x509_decoder_context certificate; /* the server's */
	br_sha256_context hash;     /* of it, */
	char fingerprint[96 + 1];   /* as in XX:XX: */
	br_x509_knownkey_context known; /* what it is checked against, */
	br_x509_class class;        /* and how */
} tls;
static br_ssl_engine_context *const eng = &tls.client.eng;

/* the connection */
static int fd = -1, pinged;
static struct addrinfo *servers, *server; /* its addresses, the one we are at */
static long long deadline;      /* ms, when `state' or the server's silence ends */
static long long backoff = FIRSTPAUSE;
static long long onlinetime = LLONG_MAX; /* when this connection went online */
static unsigned long nrounds;   /* through all addresses since a server was there */
static int wake[2];             /* signal handlers write, the loop reads */
/* signal handlers read the first and set the others */
static volatile sig_atomic_t state, quitting, reporting;

/* ---- log and clock ---- */

/* Log one line, cut at LINEMAX. Bytes other than printable ASCII are written as
 * %XX. What the log does not take at once is counted, and told later; a line that
 * it took in part is ended before the next. A pipe that has room takes a whole line,
 * so poll() tells enough, unless another fills it just then: O_NONBLOCK would be
 * set for all that have it open. */
static void
say(const char *fmt, ...)
{
	struct pollfd p = { .fd = 2, .events = POLLOUT };
	char raw[LINEMAX], line[LINEMAX] = "\nclient_proxy: ", *begin = line + !torn;
	const unsigned char *s;
	size_t n = strlen(line);
	ssize_t written;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(raw, sizeof(raw), fmt, ap);
	va_end(ap);
	for (s = (unsigned char *)raw; *s && n < LINEMAX - 4; s++)
		if (*s >= ' ' && *s <= '~')
			line[n++] = (char)*s;
		else
			n += (size_t)snprintf(line + n, 4, "%%%02X", *s);
	line[n++] = '\n';
	written = poll(&p, 1, 0) < 1 ? 0 : write(2, begin, (size_t)(line + n - begin));
	if (written > 0)
		torn = begin[written - 1] != '\n';
	nunsaid += written < line + n - 1 - begin;
}

/* 1 if something may be logged that others can cause as often as they like:
 * that is LINERATE lines a second, the rest is counted. */
static int
maysay(void)
{
	nunsaid += nlines >= LINERATE;
	return nlines++ < LINERATE;
}

/* A second is over: tell how many lines are missing. */
static void
sayunsaid(void)
{
	unsigned long n = nunsaid;

	nlines = 0;
	linetime = AFTER(1);
	if (n > 0)
		say("log: %lu lines lost: too many in a second, or the log was full", n);
	nunsaid = nunsaid > n ? n : 0;
}

/* Exit if something is bad: say what, and why, or with NULL what the system
 * says. */
static void
check(int bad, const char *what, const char *why)
{
	if (!bad)
		return;
	say("%s: %s", what, why ? why : strerror(errno));
	exit(1);
}

static long long
milliseconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (long long)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* 1 if two strings are the same. Most differ in their first byte. */
static int
same(const char *a, const char *b)
{
	return *a == *b && !strcmp(a, b);
}

/* 1 if str, up to its end or one of `stops', is `what', or that is NULL. */
static int
matches(const char *what, const char *str, const char *stops)
{
	return !what || (!strncmp(str, what, strlen(what)) &&
	                 strchr(stops, str[strlen(what)]));
}

/* Spread the bits of h over all of it (the finalizer of MurmurHash3). */
static uint64_t
mix(uint64_t h)
{
	h = (h ^ h >> 33) * 0xff51afd7ed558ccd;
	h = (h ^ h >> 33) * 0xc4ceb9fe1a85ec53;
	return h ^ h >> 33;
}

/* A random number below n, which is 2^32 at most (SplitMix64). */
static unsigned long
uniform(uint64_t n)
{
	return (unsigned long)((mix(seed += 0x9e3779b97f4a7c15) >> 32) * n >> 32);
}

/* A hash of s[n], with a salt. */
static uint64_t
hash(uint64_t h, const char *s, size_t n)
{
	uint64_t w;

	for (; n >= sizeof(w); s += sizeof(w), n -= sizeof(w)) {
		memcpy(&w, s, sizeof(w));
		h = mix(h ^ w);
	}
	for (w = n; n > 0; n--)
		w = w << 8 | (unsigned char)*s++;
	return mix(h ^ w);
}

/* ---- JIDs ---- */

/* 1 if jid is [node@]domain[/resource] with our domain, and fit to be part of
 * an address that we write; servers deliver others' stanzas to us as well. */
static int
isours(const char *jid)
{
	size_t node = strcspn(jid, "@/"), len = strlen(domain);
	const char *s = jid[node] == '@' ? jid + node + 1 : jid;

	return s != jid + 1 && s - jid <= PARTMAX + 1 && !strncmp(s, domain, len) &&
	       (!s[len] || (s[len] == '/' && s[len + 1]));
}

/* 1 if str is UTF-8 (RFC 3629 4) of characters that XML has (XML 1.0 2.2), but
 * for TAB, LF and CR, which are in no JID either. */
static int
isutf8(const char *str)
{
	const unsigned char *s = (const unsigned char *)str;
	int more, least, most;

	for (; *s; s++) {
		if (*s >= ' ' && *s < 0x80)
			continue;
		if (*s < 0xc2 || *s > 0xf4)
			return 0;
		/* with a second byte beyond these it is longer than need be, a surrogate,
		 * or above U+10FFFF */
		least = *s == 0xe0 ? 0xa0 : *s == 0xf0 ? 0x90 : 0x80;
		most = *s == 0xed ? 0x9f : *s == 0xf4 ? 0x8f : 0xbf;
		more = 1 + (*s >= 0xe0) + (*s >= 0xf0);
		for (; more > 0; more--, least = 0x80, most = 0xbf)
			if (*++s < least || *s > most)
				return 0;
	}
	/* XML has neither U+FFFE nor U+FFFF */
	return !strstr(str, "\xef\xbf\xbe") && !strstr(str, "\xef\xbf\xbf");
}

/* Write the address below `self' that stands for jid into dst[JIDMAX + 1]:
 * printable ASCII as it is, so that the target's client can read it, the rest
 * as %XX, since a server on the way may refuse it, as it does mixed directions
 * of writing (RFC 3454 6). 0 if it is too long. */
static int
encode(char *dst, const char *self, const char *jid)
{
	char *start = stpcpy(stpcpy(dst, self), "/"), *end = start;

	for (; *jid && end - start <= PARTMAX; jid++)
		if (*jid >= ' ' && *jid <= '~' && *jid != '%')
			*end++ = *jid;
		else
			end += snprintf(end, 4, "%%%02X", (unsigned char)*jid);
	*end = '\0';
	return end - start <= PARTMAX;
}

/* Undo encode: turn src, up to the character `stop', into a JID or a part of
 * one in dst[PARTMAX + 1]. Returns where it has stopped; NULL if src encodes
 * none: written out as it came it could make our stream ill-formed XML. */
static const char *
decode(char *dst, const char *src, char stop)
{
	char *s = dst;

	for (; *src && *src != stop && s < dst + PARTMAX; s++) {
		*s = *src++;
		if (*s != '%')
			continue;
		if (strspn(src, "0123456789ABCDEFabcdef") < 2 || !strncmp(src, "00", 2))
			return NULL;
		*s = (char)strtol((char []){ src[0], src[1], '\0' }, NULL, 16);
		src += 2;
	}
	*s = '\0';
	return *dst && *src == stop && isutf8(dst) ? src : NULL;
}

/* ---- resources ---- */

/* The resource with this mark, or NULL. */
static Resource *
findmark(uint64_t mark)
{
	Resource **last = marks + mark % LEN(marks);
	Resource *w, *end = resources + nresources;

	if (*last && *last < end && (*last)->mark == mark)
		return *last;
	for (w = resources; w < end; w++)
		if (w->mark == mark)
			return *last = w;
	return NULL;
}

/* The resource with this name, or NULL. */
static Resource *
findresource(const char *name)
{
	return findmark(hash(0, name, strlen(name)));
}

/* The resource with this name is online, and is w if it was before. Returns it, or
 * NULL if it is not in the table. */
static Resource *
addresource(Resource *w, const char *name)
{
	size_t len = strlen(name);

	if (w) {
		seen = w->missed ? 2 : seen;
		w->missed = 0;
	} else if (len == 0 || len > PARTMAX) {
		say("ignored: %s/%.99s: invalid resource", target, name);
	} else if (nresources < MAXRESOURCES) {
		w = resources + nresources++;
		*w = (Resource){ .mark = hash(0, name, len) };
		stpcpy(stpcpy(stpcpy(w->jid, target), "/"), name);
		say("joined: %.*s: %d online", SHOWN, w->jid, nresources);
	} else if (!toomany) {
		say("ignored: %s/%.99s and any more: %d online, which is the limit",
		    target, name, nresources);
		toomany = 1;
	} else {
		seen = 2; /* it may have been there before; the dead may fill the table */
	}
	return w;
}

/* A resource has shown that it is alive. */
static void
recover(Resource *w)
{
	if (w->pings > 1)
		say("recovered: %.*s", SHOWN, w->jid);
	w->pings = w->unread = 0;
	w->trialat = 4;
	w->steptime = now;
}

/* What speaks against a resource, what counts most first: it is stalled, it
 * drains, it holds as many open requests as there are places left. */
static int
handicap(const Resource *w)
{
	return 4 * (w->pings > 1) + 2 * w->drains +
	       (choice != STANDBY && w->open >= MAXREQUESTS - nopen);
}

/* The resource for jid; there must be one. With STICKY, or relay, a requester
 * who was served lately stays with the same one, with STANDBY all do. Otherwise
 * the least handicap counts, then the setting: with STANDBY the name, with
 * STICKY the least hash of requester and resource, so that nobody else moves
 * when a resource joins or leaves (rendezvous hashing). Of those with the same
 * handicap, a request that another resource has lost goes, except with STANDBY,
 * rather to one that owes no answer to a ping; it goes to `loser' only if there is
 * no other. Where it goes is not remembered: the requester's others stay where
 * they are. */
static Resource *
choose(const char *jid, int lost, const Resource *loser)
{
	int how = relay && choice != STANDBY ? STICKY : choice;
	/* with relay, who talks to one that drains or has too many stays */
	int i, ties = 0, enough = how == STICKY && relay ? 4 : 1;
	uint64_t who = 0, cost, best = UINT64_MAX;
	Resource *w, *found, *stays = NULL, *end = resources + nresources;
	struct stick *last;

	lost = lost && how != STANDBY;
	for (i = 0; how == RANDOM && !lost && i < 16; i++)
		if (handicap(found = resources + uniform((uint64_t)nresources)) == 0)
			return found;
	if (how == STICKY)
		who = hash(0, jid, strcspn(jid, relay ? "/" : ""));
	last = sticks + mix(who ^ salt) % MAXREQUESTS;
	if ((how == STICKY || how == STANDBY) && last->who == who && now < last->until)
		stays = findmark(last->mark);
	found = stays ? stays : resources;
	w = stays && !lost && handicap(stays) < enough ? end : resources;
	for (; w < end; w++) {
		if (w == loser && lost)
			continue;
		cost = (uint64_t)handicap(w) << 61 | (uint64_t)(lost && w->pings > 0) << 60;
		/* who stays does so rather than move to any that is no better */
		if (w != stays && how != RANDOM)
			cost += how == STICKY ? mix(w->mark ^ who) >> 4 :
			        how == STANDBY ? 1 : (uint64_t)w->open;
		ties = cost < best ? 1 : ties + (cost == best);
		if (cost < best || (cost == best && (how == STANDBY ?
		    strcmp(w->jid, found->jid) < 0 : uniform((uint64_t)ties) == 0)))
			found = w;
		best = MIN(cost, best);
	}
	if (lost)
		return found;
	if (how == STANDBY && last->mark != found->mark)
		say("in charge: %.*s", SHOWN, found->jid);
	*last = (struct stick){ who, found->mark, how == STANDBY ? NEVER : AFTER(sticktime) };
	return found;
}

/* ---- out buffer and serialising ---- */

/* Put n bytes at the end of a buffer: all of them or none. */
static void
put(Buffer *b, const char *s, size_t n)
{
	if (n > b->size - b->len) {
		b->lost = 1;
		n = 0;
	}
	memcpy(b->s + b->len, s, n);
	b->len += n;
	b->s[b->len] = '\0';
}

/* Put several strings. */
#define putall(b, ...) putstrings(b, (const char *const []){ __VA_ARGS__, NULL })
static void
putstrings(Buffer *b, const char *const *s)
{
	for (; *s; s++)
		put(b, *s, strlen(*s));
}

/* Put s[n] with references for what is `special' there (XML 1.0 2.4, 3.3.3), as
 * few as possible: servers count bytes as written, so what fitted for its sender
 * must fit for us. Most often there is nothing special, so copy it, then look. */
static void
putescaped(Buffer *b, const char *s, size_t n, const char *special)
{
	static const char *const refs[UCHAR_MAX + 1] = {
		['&'] = "&amp;", ['<'] = "&lt;", ['>'] = "&gt;", ['\r'] = "&#13;",
		['\n'] = "&#10;", ['\t'] = "&#9;", ['\''] = "&apos;", ['"'] = "&quot;",
		['%'] = "%25", ['/'] = "%2F" /* in ids */
	};
	size_t start = b->len, i;

	put(b, s, n);
	i = strcspn(b->s + start, special);
	b->len = start + i;
	/* a text may have any > but that of ]]> */
	for (; i < n && !b->lost; i++)
		if (!strchr(special, s[i]) ||
		    (s[i] == '>' && (b->len < 2 || memcmp(b->s + b->len - 2, "]]", 2))))
			put(b, s + i, 1);
		else
			putall(b, refs[(unsigned char)s[i]]);
}

/* Put an attribute, if it has a value, in the quotes that need fewer
 * escapes. */
static void
putattr(Buffer *b, const char *name, const char *value)
{
	const char *s, *special = "&<'\t\n\r", *quote = "='";
	size_t n;
	long more = 0;

	if (!value)
		return;
	n = strcspn(value, special);
	for (s = value; value[n] && *s; s++)
		more += (*s == '\'') - (*s == '"');
	if (more > 0) {
		special = "&<\"\t\n\r";
		quote = "=\"";
	}
	put(b, " ", 1);
	put(b, name, strlen(name));
	put(b, quote, 2);
	if (value[n])
		putescaped(b, value, strlen(value), special);
	else
		put(b, value, n);
	put(b, quote + 1, 1);
}

/* 1 if whatever one more stanza causes fits into the out buffer. */
static int
hasroom(void)
{
	return OUTSIZE - out.len >= MAXSTANZA + OWNROOM;
}

/* 1 if we may read: there is room for what that causes; or the connection is jammed
 * and we refuse it; or it is being closed, and what comes is thrown away. */
static int
mayread(void)
{
	return hasroom() || jammed || state == CLOSING;
}

/* Put a stanza: its name, its attributes, omitting those that are NULL, and the
 * rest of it, in which the largest tag has `tag' bytes. White space follows a
 * large tag: a server whose expat defers parsing (see newparser) looks at it
 * again when twice as much has come, and all that follows waits with it. Stanza
 * and space go out whole or not at all: 0 if they are larger than servers take, or
 * there is no room but what is kept for the end of the stream. */
static int
putstanza(const char *name, const char *type, const char *id, const char *from,
          const char *to, const char *rest, size_t tag)
{
	size_t start = out.len, space = 0;

	out.lost = 0;
	put(&out, "<", 1);
	put(&out, name, strlen(name));
	putattr(&out, "type", type);
	putattr(&out, "id", id);
	putattr(&out, "from", from);
	putattr(&out, "to", to);
	tag += out.len - start;
	put(&out, rest, strlen(rest));
	for (; tag > PADABOVE && space < tag && !out.lost; space++)
		put(&out, " ", 1);
	if (out.lost || out.len - start > MAXSTANZA || OUTSIZE - out.len < OWNROOM / 2) {
		out.len = start;
		return 0;
	}
	return 1;
}

/* Put an error (RFC 6120 8.3) about a stanza with this name and id. */
static void
puterror(const char *name, const char *id, const char *from, const char *to, int why)
{
	const char *condition = refusals[why].condition;
	char rest[256];

	snprintf(rest, sizeof(rest), "><error type='%s'><%s xmlns='" NS_STANZAS
	         "'/></error></%s>", refusals[why].type, condition, name);
	if (putstanza(name, "error", id, from, to, rest, 0)) {
		refusals[why].n++;
		return;
	}
	count.dropped++;
	if (maysay())
		say("dropped: error %s to %.99s: too large, or no room", condition, to);
}

static void
putpresence(const char *type, const char *id, const char *from, const char *to)
{
	putstanza("presence", type, id, from, to, "/>", 0);
}

/* Make an id[16] for what we ask, which nobody but the server and whom we ask can
 * know: a word for what it is, and a random number. */
static void
makeid(char *id, const char *what)
{
	snprintf(id, 16, "%s%08lx", what, uniform(1ULL << 32));
}

/* Put a ping (XEP-0199). 0 if there is no room. */
static int
putping(const char *id, const char *to)
{
	return putstanza("iq", "get", id, domain, to,
	                 "><ping xmlns='urn:xmpp:ping'/></iq>", 0);
}

/* Ping ourselves: it comes back from the server behind all that this has read and
 * said before. Its id tells when it was sent, so any of those that are out counts. */
static void
pingself(void)
{
	char id[40];

	snprintf(id, sizeof(id), "%s%lld", due.id, now);
	/* one of this millisecond would have the same id, and serves as well; without
	 * room there is no ping to wait for */
	if (due.last == now || !putping(id, domain))
		return;
	due.nout++;
	due.last = now;
	due.next = AFTER(patience); /* if it is lost, or slow */
}

/* The stream has to end: for which reason, and with which stream error (RFC
 * 6120 4.9.3), if that is not NULL. */
static void
end(const char *why, const char *error)
{
	if (ending)
		return;
	ending = why;
	if (error)
		putall(&out, "<stream:error><", error, " xmlns='urn:ietf:params:xml:"
		       "ns:xmpp-streams'/></stream:error>");
	XML_StopParser(parser, XML_FALSE);
}

/* ---- the stanza that is being read ---- */

/* Put the prefixes that the header of the server's stream has declared and
 * these attributes do not, since any name in the stanza may have one. */
static void
putdecls(const char **atts)
{
	const char *name, *value, **a;

	for (name = decls.s; name < decls.s + decls.len; name = value + strlen(value) + 1) {
		value = name + strlen(name) + 1;
		for (a = atts; *a && !same(*a, name); a += 2)
			;
		if (!*a)
			putattr(&body, name, value);
	}
}

/* Keep a string in attrs, at *where, which stays what it is if it does not
 * fit. */
static void
keep(const char **where, const char *s)
{
	size_t start = attrs.len;

	put(&attrs, s, strlen(s) + 1);
	if (attrs.len > start)
		*where = attrs.s + start;
}

/* A stanza, or the stream itself, begins. Its namespace does not go out: our
 * stream has its own, and servers do not understand jabber:client there. */
static void
startstanza(const char *name, const char **atts)
{
	attrs.len = attrs.lost = body.len = body.lost = 0;
	st.nnodes = 1;
	nodes[0].depth = depth;
	st.kind = st.type = "";
	st.from = st.to = st.id = st.ns = NULL;
	keep(&st.kind, name);
	putdecls(atts);
	for (; *atts; atts += 2)
		if (same(atts[0], "from"))
			keep(&st.from, atts[1]);
		else if (same(atts[0], "to"))
			keep(&st.to, atts[1]);
		else if (same(atts[0], "type"))
			keep(&st.type, atts[1]);
		else if (same(atts[0], "id"))
			keep(&st.id, atts[1]);
		else if (same(atts[0], "xmlns"))
			keep(&st.ns, atts[1]);
		else
			putattr(&body, atts[0], atts[1]);
	st.largest = body.len;
}

/* An element in the stanza begins. It is in nodes if there is room for it
 * and it is not too deep. */
static void
addelement(const char *name, const char **atts)
{
	Node *n = nodes + st.nnodes;
	size_t start = body.len;

	put(&body, "<", 1);
	put(&body, name, strlen(name));
	n->depth = depth;
	n->name = body.s + start + 1;
	n->ns = "";
	for (; *atts; atts += 2) {
		putattr(&body, atts[0], atts[1]);
		if (!body.lost && same(*atts, "xmlns"))
			n->ns = body.s + body.len - 1 - strlen(atts[1]);
	}
	n->end = body.s + body.len;
	if (depth <= 4 && st.nnodes < (int)LEN(nodes) - 1 && !body.lost)
		st.nnodes++;
	st.largest = MAX(st.largest, body.len - start);
}

/* The first element in element n, of this name and namespace, where they are not
 * NULL. NULL if there is none, or no n. */
static Node *
child(Node *n, const char *name, const char *ns)
{
	Node *c = n;

	while (c && ++c < nodes + st.nnodes && c->depth > n->depth)
		if (c->depth == n->depth + 1 && matches(name, c->name, " />") &&
		    matches(ns, c->ns, "'\""))
			return c;
	return NULL;
}

/* The condition of an error: the name of the first element in it. */
static const char *
condition(Node *error)
{
	Node *n = child(error, NULL, NULL);

	if (!n)
		return "no condition given";
	n->name[strcspn(n->name, " />")] = '\0';
	return n->name;
}

/* 1 if the stanza is an error with this condition (RFC 6120 8.3.3). */
static int
haserror(const char *why)
{
	return st.error && child(child(nodes, "error", NULL), why, NS_STANZAS);
}

/* ---- requests ---- */

/* Every request gets one answer (RFC 6120 8.2.3): if not from the resource that
 * has it, then an error from us. Answers need none of this to find their
 * way. */

/* Put request r into a list: into that of open ones by when it is due, into
 * others at the end. Who holds an open one may be silent for too long. */
static void
move(Request *r, int list)
{
	Request *prev;
	int n = (list != FREE) - (r->list != FREE);

	if (r->holder)
		r->holder->open += (list == OPEN) - (r->list == OPEN);
	r->prev->next = r->next;
	r->next->prev = r->prev;
	prev = lists[list].prev; /* only now: r may have been the last of it */
	while (list == OPEN && prev != lists + OPEN && prev->due > r->due)
		prev = prev->prev;
	r->list = list;
	r->prev = prev;
	r->next = prev->next;
	r->next->prev = prev->next = r;
	if (stall && list == OPEN && r->holder)
		due.check = MIN(due.check, AFTER(stall));
	nopen += n;
	shares[0][r->share % SHARES] += n;
	shares[1][(r->share >> 32) % SHARES] += n;
	if (list == FREE)
		r->holder = r->asker = NULL;
}

/* The place of a key among those answered; if it is not there, the place of the
 * oldest in its bucket. */
static uint64_t *
findanswered(uint64_t key)
{
	uint64_t *k = answered[key % MAXREQUESTS], *oldest = k + LEN(*answered) - 1;

	while (k < oldest && *k != key)
		k++;
	return k;
}

/* Request r is over. Its key is kept, once, be its id used as often as it may; but
 * not of one without a text: another with its id may have failed, and its answer
 * may still come. */
static void
finish(Request *r)
{
	uint64_t *keys = answered[r->key % MAXREQUESTS], *k = findanswered(r->key);

	if (*texts[r - requests]) {
		memmove(keys + 1, keys, (size_t)(k - keys) * sizeof(*keys));
		*keys = r->key;
	}
	move(r, FREE);
}

/* Request r is held by resource w, or with NULL by a user, who cannot be seen
 * to leave. */
static void
giveto(Request *r, Resource *w)
{
	r->holder = w;
	r->bounced = 0;
	r->handed = now;
	if (w) {
		w->nhanded++;
		if (w->open + w->pings == 0 || w->pings > w->trialat) {
			w->steptime = now;
			/* each time rarer, so that little is lost to one that is dead */
			w->trialat = MAX(4, 2 * w->pings - 1);
		}
	}
	move(r, OPEN);
}

/* A hash of what tells the request or answer that has come from others. Those of
 * another connection have other keys. */
static uint64_t
makekey(const char *requester, const char *address)
{
	uint64_t h = hash(salt + count.connections, requester, strlen(requester));

	h = hash(h, address, strlen(address));
	return st.id && *st.id ? hash(h, st.id, strlen(st.id)) : h;
}

/* 1 if the request that has come is a get that can be kept with its content, so
 * that it may be handed on. */
static int
isrepeatable(void)
{
	return same(st.type, "get") && strlen(st.from) + strlen(st.to) +
	       strlen(st.id ? st.id : "") + body.len + 4 <= REQUESTSIZE;
}

/* 1 if a requester has as many open requests as there are places left, so that
 * one who floods leaves half of them to others. It is said once, until most are
 * free. */
static int
isgreedy(const char *user, uint64_t who)
{
	int n = MIN(shares[0][who % SHARES], shares[1][(who >> 32) % SHARES]);
	int greedy = n >= MAXREQUESTS - nopen;

	if (greedy && !shedding && maysay())
		say("busy: %d requests open, %d from %.99s: refusing more", nopen, n, user);
	shedding = greedy || (shedding && nopen > MAXREQUESTS / 4);
	return greedy;
}

/* Remember the request just handed to `holder', or with NULL asked of a user. If
 * its addresses and id are too long it counts, but we cannot answer it; a get
 * with its content can be handed on. */
static void
track(const char *address, uint64_t who, Resource *holder)
{
	Request *r = lists[FREE].prev, **p;
	Buffer text;

	if (r == lists + FREE) {
		r = requests + nused++;
		r->prev = r->next = r;
	}
	/* it may still be in the bucket of the last request that was here */
	for (p = buckets + r->key % MAXREQUESTS; *p && *p != r;)
		p = &(*p)->chain;
	*p = r->chain;
	r->due = UNWRITTEN;
	r->share = who;
	r->asker = holder ? NULL : st.sender;
	giveto(r, holder);
	text = (Buffer){ texts[r - requests], REQUESTSIZE - 1, 0, 0 };
	put(&text, st.from, strlen(st.from) + 1);
	put(&text, address, strlen(address) + 1);
	putall(&text, st.id ? st.id : "");
	if (text.lost) {
		*text.s = '\0';
		if (count.untracked++ == 0)
			say("untracked: request from %.99s: addresses and id exceed %d "
			    "bytes; further ones are not logged", st.from, REQUESTSIZE);
	}
	put(&text, "", 1);
	put(&text, body.s, body.len);
	r->tries = holder && isrepeatable() ? (int)retry : -1;
	r->hasid = st.id != NULL;
	r->largest = st.largest;
	r->key = makekey(st.from, address);
	r->chain = buckets[r->key % MAXREQUESTS];
	buckets[r->key % MAXREQUESTS] = r;
}

/* The request with this key that has no answer yet, preferably one that resource w
 * holds, and of these rather one that has not failed: of those that are alike
 * several may be sent back, or answered in a jam, in one read. NULL: there is none. */
static Request *
findrequest(uint64_t key, const Resource *w)
{
	Request *r, *found = NULL;

	for (r = buckets[key % MAXREQUESTS];
	     r && !(found && found->holder == w && found->list == OPEN); r = r->chain)
		if (r->key == key && r->list != FREE && (!found || r->holder == w))
			found = r;
	return found;
}

/* Request r has failed: it waits to be handed on or answered with an error. One
 * without a text is over: what its server still says of it passes. */
static void
fail(Request *r)
{
	move(r, *texts[r - requests] ? FAILED : FREE);
}

/* Fail requests that resource w holds, with NULL those of all: each of them, or
 * only those that can be handed on. Returns how many. */
static unsigned
takeback(const Resource *w, int each)
{
	Request *r, *next;
	unsigned n = 0;

	for (r = lists[OPEN].next; r != lists + OPEN; r = next) {
		next = r->next;
		if (r->holder && (!w || r->holder == w) && (each || r->tries > 0)) {
			fail(r);
			n++;
		}
	}
	return n;
}

/* A resource, or with NULL each of them, has left: fail its requests. The last
 * one takes its place in the table, so that there are no holes. */
static void
removeresource(Resource *w)
{
	Resource *last = w ? resources + nresources - 1 : NULL;
	Request *r;
	unsigned n = takeback(w, 1);

	if (n > 0)
		say("failed: %u requests held by resources that left", n);
	/* probe, so that those who had no place can have one now */
	if (toomany && ask.granted)
		ask.next = now;
	toomany = 0;
	for (r = requests; r < requests + nused; r++) {
		/* it is not answered, though one with its id may have been: forget that, or
		 * else the oldest key there, so that its answer passes if w is back by then */
		if (r->asker && (!w || r->asker == w)) {
			*findanswered(r->key) = 0;
			move(r, FREE);
		}
		if (!w || r->holder == w)
			r->holder = NULL;
		if (r->holder == last)
			r->holder = w;
		if (r->asker == last)
			r->asker = w;
	}
	if (w) {
		nresources--;
		say("left: %.*s: %d online", SHOWN, w->jid, nresources);
		*w = *last;
	} else if (nresources > 0) {
		say("left: %s, all of its resources: 0 online", target);
		nresources = 0;
	}
}

/* Fail the requests whose answers were due by time t. */
static void
expire(long long t)
{
	const char *text;
	Request *r;
	Resource *w;
	int n = 0;

	for (; (r = lists[OPEN].next)->due <= t; n++) {
		text = *texts[r - requests] ? texts[r - requests] : "(untracked)\0(untracked)";
		w = r->holder;
		if (n == 0 && maysay())
			say("timed out: request from %.99s to %.99s%s%.99s, and perhaps others",
			    text, text + strlen(text) + 1,
			    w ? " at " : "", w ? w->jid + strlen(target) + 1 : "");
		if (w)
			w->nlate++;
		r->due = 0;
		fail(r);
	}
}

/* Request r has failed. A get goes, as it came, to another resource than the
 * one that had it. If there is no other, or it does not fit with the other's name,
 * it stays with its holder, unless that has left or it has bounced: its answer is
 * due when it was. Otherwise we answer. */
static void
settle(Request *r)
{
	const char *requester = texts[r - requests];
	const char *address = requester + strlen(requester) + 1;
	const char *rest = address + strlen(address) + 1;
	const char *id = r->hasid ? rest : NULL;
	char src[JIDMAX + 1];
	Resource *w;

	if (r->due > 0 && r->tries > 0 && nresources > 0) {
		w = choose(requester, 1, r->holder);
		encode(src, address, requester);
		rest += strlen(rest) + 1;
		if (w != r->holder &&
		    putstanza("iq", "get", id, src, w->jid, rest, r->largest)) {
			if (r->holder)
				r->holder->nretried++;
			r->tries--;
			giveto(r, w);
			return;
		}
		/* with STANDBY it may be in charge again */
		if (r->holder && !r->bounced) {
			move(r, OPEN);
			return;
		}
	}
	puterror("iq", id, address, requester, r->due > 0 ? GONE : r->due ? BUSY : LATE);
	finish(r);
}

/* 1 if a resource with a request, or that owes an answer to a ping, was silent for
 * `stall' seconds by time t. */
static int
issilent(const Resource *w, long long t)
{
	return w->open + w->pings > 0 && w->steptime + stall * 1000LL <= t;
}

/* A ping to ourselves that was sent at time t is back, and what was said by the time
 * `by' has been read. Ping who was silent then. Who is so for as long again, from when
 * the server has surely read that, is set aside: others get its gets. From then on it
 * is pinged as often, and now and then it is tried with a request. If our ping took
 * longer than `stall' they may not even have got their requests, or their answers wait
 * in the server: their time begins anew. */
static void
checkresources(long long t, long long by)
{
	Resource *w, *end = stall ? resources + nresources : resources;
	int well = 0;

	due.check = NEVER;
	for (w = resources; w < end; w++) {
		if (w->unread ? w->steptime < t : now - t > stall * 1000LL) {
			w->unread = 0;
			w->steptime = now;
		}
		well += w->pings + issilent(w, by) < 2;
	}
	for (w = resources; w < end; w++) {
		if (issilent(w, by) && hasroom()) {
			putping("stall", w->jid);
			if (++w->pings == 2)
				say("stalled: %.*s: silent for over %u s, %d open",
				    SHOWN, w->jid, 2 * stall, w->open);
			if (w->pings > 1 && well > 0)
				takeback(w, 0);
			w->steptime = now;
			w->unread = 1;
		}
		if (w->pings > w->trialat && !w->drains && choice != STANDBY)
			trial = w;
		if (w->open + w->pings > 0)
			due.check = MIN(due.check, w->unread ? now : w->steptime + stall * 1000LL);
	}
}

/* ---- presence ---- */

/* Ask for the target's presence. Request the subscription: until it is granted,
 * after a longer pause each time (RFC 6121 3.1), and again when it may be lost.
 * Else probe for what was missed (4.3); a ping to ourselves says when the server
 * has read that. On Prosody a probe before the subscription would withdraw the
 * request for it. */
static void
askpresence(int probe)
{
	Resource *w;

	makeid(ask.id, "ask");
	putpresence(probe ? "probe" : "subscribe", ask.id, domain, target);
	if (!probe && !ask.granted)
		say("subscribing: %s", target);
	ask.time = now;
	ask.next = probe ? NEVER : ask.granted ? AFTER(refresh) : now + ask.pause;
	ask.pause = MIN(2 * ask.pause, askmax * 1000LL);
	seen = 0;
	/* a probe sent before the last one is over counts as the same one, but those
	 * who have answered must do so again; a request for the subscription clears
	 * what anybody has missed */
	for (w = resources; w < resources + nresources; w++)
		w->missed = probe ? MAX(w->missed + (sweeptime == NEVER), 1) : 0;
	sweeptime = probe ? 0 : NEVER;
}

/* The probe is over. If anything has come, those who have not answered may only be
 * late, so a second one follows. If they miss that, too, while some who were there
 * before answer it, they have left without a word, as when their server's machine
 * has died. A second probe has no second one of its own, nor has one that the same
 * have missed again: among many, there may always be somebody who does. Nor
 * does it say anything if nobody has answered it, as the first was answered just
 * before. If nobody has answered a first one, the subscription may have been
 * lost: it is requested at once, and after that in place of each probe while no
 * presence comes. More often, and those who are always late would make us ask
 * without end. */
static void
sweep(void)
{
	int i, late = 0;

	sweeptime = NEVER;
	ask.next = MIN(ask.next, AFTER(refresh));
	if (!seen && !second && !unanswered) {
		say("unanswered: probe of %s", target);
		ask.next = now;
	}
	/* the one before a second one was answered */
	unanswered = !seen && !second;
	for (i = nresources - 1; i >= 0; i--)
		if (!seen)
			resources[i].missed = 0;
		else if (resources[i].missed > 1 && seen > 1)
			removeresource(resources + i);
		else
			late |= resources[i].missed == 1;
	second = late && !second;
	ask.next = second ? now : ask.next;
}

/* The target, or its server, does not let us see its presence. */
static void
losetarget(const char *why)
{
	say("not subscribed: %s: %s", target, why);
	removeresource(NULL);
	if (ask.granted)
		ask.next = now + (ask.pause = askmin * 1000LL);
	ask.granted = unanswered = second = 0;
	sweeptime = NEVER;
}

/* What we have asked last is answered with an error. Others do not count: servers
 * also send them when a session dies and our presence was still on its way
 * there. */
static void
presenceerror(void)
{
	Node *error = child(nodes, "error", NULL);
	const char *why = condition(error);
	const char *wait = error ? strstr(error->name, " type='wait'") : NULL;

	if (strncmp(why, "remote-server-", 14) && !(wait && wait < error->end)) {
		losetarget(why);
		return;
	}
	say("unreachable: %s: %s", target, why);
	ask.next = MIN(ask.next, AFTER(refresh));
	sweeptime = UNWRITTEN; /* it is never over, so that nobody misses it */
	second = 0;
}

/* Presence from the target to our domain. */
static void
targetpresence(void)
{
	Resource *w = st.sender;
	Node *show = child(nodes, "show", "");
	int leaves = same(st.type, "unavailable"), drains;

	if (!*st.type || leaves)
		seen = MAX(seen, 1);
	if (!*st.type && st.name && !strncmp(st.name + 1, prefix, strlen(prefix))) {
		drains = show && !strncmp(show->end, ">dnd<", 5);
		if ((w = addresource(w, st.name + 1)) && drains != w->drains) {
			w->drains = drains;
			say("%s: %.*s", drains ? "draining" : "back", SHOWN, w->jid);
		}
	} else if (leaves && (!st.name || w)) {
		/* it may have a new session, and this was told later than that; but it
		 * is also how servers answer a probe if nobody is there */
		if (ask.granted && nresources > 0)
			ask.next = now;
		removeresource(w);
	} else if (same(st.type, "subscribed")) {
		if (!ask.granted)
			say("subscribed: %s", target);
		ask.granted = 1;
		ask.next = now; /* as soon as there is room */
		if (hasroom())
			askpresence(1);
	} else if (same(st.type, "unsubscribed")) {
		losetarget("subscription refused or withdrawn");
	} else if (st.error && !st.name && st.id && same(st.id, ask.id)) {
		presenceerror();
	}
}

/* Presence for an address of ours. Only what our domain is told says who is
 * online. */
static void
handlepresence(void)
{
	int subscribes = same(st.type, "subscribe");

	if (subscribes || same(st.type, "probe")) {
		if (subscribes || !st.fromtarget)
			putpresence(st.fromtarget ? "subscribed" : "unsubscribed", NULL,
			            st.self, st.from);
		if (st.fromtarget)
			putpresence(NULL, NULL, st.self, st.from);
		/* on a fresh installation the target's roster may hold us only now */
		if (st.fromtarget && subscribes && sweeptime >= NEVER &&
		    (!ask.granted || unanswered)) {
			ask.next = MIN(ask.next, now + 500);
			ask.pause = askmin * 1000LL;
		}
	} else if (st.fromtarget && same(st.to, domain)) {
		targetpresence();
	} else if (!st.fromtarget && maysay()) {
		say("ignored: presence %.99s from %.99s: the target is %.99s",
		    *st.type ? st.type : "(no type)", st.from, target);
	}
}

/* ---- routing ---- */

/* When, in ms, to ping ourselves for what is due: silence of a resource, that the
 * server reads a probe, or its end, or an answer. */
static long long
pingtime(void)
{
	return MAX(due.next, MIN(MIN(due.check, sweeptime), lists[OPEN].next->due));
}

/* Do what is due while online. Answers may still be on their way, here or in
 * the server: a ping to ourselves follows them, and handleping() does the
 * rest. */
static void
chores(void)
{
	if (now >= ask.next && sweeptime >= NEVER && hasroom())
		askpresence(ask.granted && (!unanswered || seen));
	if (now >= pingtime() && hasroom())
		pingself();
	/* with STANDBY another takes over at once */
	if (choice == STANDBY && nresources > 0)
		choose("", 0, NULL);
	while (lists[FAILED].next != lists + FAILED && hasroom())
		settle(lists[FAILED].next);
}

/* A ping to ourselves is back, if the id is that of one: we have read all that came
 * before it, and the server all that we wrote before it. As an error it says that
 * nothing leads to us any more, though we are connected: so it is once Prosody has
 * reloaded the host. */
static void
handleping(const char *id)
{
	long long sent, by = 0;

	if (!st.iq || strncmp(id, due.id, strlen(due.id)))
		return;
	if (st.error) {
		end("the server does not route to us any more", NULL);
		return;
	}
	sent = strtoll(id + strlen(due.id), NULL, 10);
	due.next = now + 100; /* so that this is not all we do */
	/* they come back in the order in which they went out: when the last is back, those
	 * that are missing are lost */
	if (--due.nout > 0 && sent == due.last && !due.shared) {
		say("shared: %s: another connection gets some of what is for it", domain);
		due.shared = 1;
	}
	/* a server that stood still may answer before it reads what others have sent:
	 * what counts is the ping before, which was back when this was sent */
	if (sent > due.back) {
		by = due.sent;
		due.sent = sent;
		due.back = now;
	}
	expire(by);
	if (sweeptime > 0 && sweeptime <= sent)
		sweep();
	else if (sweeptime == 0 && ask.time <= sent)
		sweeptime = AFTER(patience);
	checkresources(sent, by);
}

static void
drop(const char *why)
{
	count.dropped++;
	if (maysay())
		say("dropped: %.99s %.99s from %.99s to %.99s: %s", st.kind,
		    *st.type ? st.type : "(no type)", st.from ? st.from : "(none)",
		    st.to ? st.to : "(none)", why);
}

/* Put the stanza that is being read with these attributes. 0 if it is too
 * large, or the connection is jammed. */
static int
forward(const char *id, const char *from, const char *to)
{
	return !attrs.lost && !body.lost && !jammed &&
	       putstanza(st.kind, *st.type ? st.type : NULL, id, from, to, body.s, st.largest);
}

/* Answer the stanza with an error, from the address that was asked. Errors
 * never answer errors (RFC 6120 8.3.1), nor headlines (RFC 6121 5.2.2). Chat
 * states, receipts and markers are not worth one. */
static void
refuse(int why)
{
	/* without a body they only tell how others fare (XEP-0085, 0184, 0333) */
	int isfleeting = why == GONE && !child(nodes, "body", NULL) &&
	                 (child(nodes, NULL, "http://jabber.org/protocol/chatstates") ||
	                  child(nodes, NULL, "urn:xmpp:receipts") ||
	                  child(nodes, NULL, "urn:xmpp:chat-markers:0"));

	if (st.error || isfleeting || (!st.iq && same(st.type, "headline")))
		count.dropped++;
	else
		puterror(st.kind, st.id, st.to, st.from, why);
}

/* Hand out a request or a message with this id: to `holder', a resource of the
 * target, or with NULL from the resource that has sent it to a user. `far' is the
 * address that stands for the user: the target sees it, the user does not.
 * Either way it is the user's share that counts: otherwise one who never answers
 * could use up the places of others. */
static void
handout(const char *id, const char *far, const char *to, Resource *holder)
{
	const char *user = holder ? st.from : to;
	uint64_t who = hash(salt, user, strcspn(user, "/"));

	if (st.iq && isgreedy(user, who)) {
		refuse(BUSY);
	} else if (!forward(id, holder ? far : st.self, to)) {
		refuse(jammed ? BUSY : LARGE);
	} else if (st.iq) {
		count.requests++;
		track(holder ? st.to : far, who, holder);
	} else {
		count.messages++;
	}
}

/* With relay the name of the resource that asks, and a slash, lead the id of
 * its request: r/x. Make that, in attrs; what does not fit there will not go
 * out. */
static const char *
leadid(const char *name)
{
	const char *led = attrs.s + attrs.len;

	putescaped(&attrs, name, strlen(name), "%/");
	putall(&attrs, "/", st.id ? st.id : "");
	return led;
}

/* The resource that has asked for an answer from outside; the stanza's id
 * becomes its own. NULL if it is not online. */
static Resource *
findasker(void)
{
	char name[PARTMAX + 1];
	const char *own = st.id ? decode(name, st.id, '/') : NULL;
	Resource *w = own ? findresource(name) : NULL;

	if (w)
		st.id = own + 1;
	return w;
}

/* Pass an answer from src, one of our addresses, to the requester. Resource w
 * has sent it; NULL: none that we know. One that is too large still ends its
 * request; one that comes in a jam fails it. Of the target's resources only the one
 * that holds a request can say that it has failed: an error from an earlier holder was
 * expected. If it is its server that says so, others are asked. */
static void
passanswer(const char *src, const char *requester, Resource *w)
{
	uint64_t key = makekey(requester, src);
	Request *r = findrequest(key, w);
	int holds = r && w && r->holder == w;

	if (r ? r->due < 0 || (st.error && st.fromtarget && !holds) :
	    *findanswered(key) == key) {
		count.late++;
		return;
	}
	if (haserror("recipient-unavailable") && holds && r->tries > 0 && nresources > 1 &&
	    choice != STANDBY) {
		r->bounced = 1;
		fail(r);
		return;
	}
	if (holds) {
		w->nanswered++;
		w->waited += (unsigned long long)(now - r->handed);
	}
	if (r && jammed && *texts[r - requests]) {
		r->due = -1;
		fail(r);
		return;
	}
	if (r)
		finish(r);
	if (forward(st.id, src, requester))
		count.answers++;
	else
		puterror(st.kind, st.id, src, requester, jammed ? BUSY : LARGE);
}

/* Hand a request or a message for the target to one of its resources; there must
 * be one. All of a conversation goes to the same. */
static void
totarget(void)
{
	char src[JIDMAX + 1];
	Resource *w = choose(st.from, 0, NULL);

	/* rather with a get that others may have as well, as it is no part of a
	 * dialog */
	if (st.iq && trial && trial < resources + nresources && !trial->drains &&
	    ((retry && isrepeatable() && trial->pings > trial->trialat) ||
	     (!relay && choice != STICKY && trial->pings > trial->trialat + 3)))
		w = trial;
	if (encode(src, st.self, st.from))
		handout(st.id, src, w->jid, w);
	else
		refuse(LONGADDRESS);
}

/* Do with an IQ or a message what the table of the man page says. The order
 * matters: the first case that fits applies. What asks comes after what answers:
 * for requests and messages the rules are much the same. The address encodes a
 * stranger if that is neither the target nor one of us. */
static void
route(void)
{
	char outside[JIDMAX + 1];
	int isanswer = st.iq && (st.error || same(st.type, "result"));
	int stranger = *st.other && !matches(target, st.other, "/") && !isours(st.other);
	Resource *w = st.sender;

	if (isanswer && st.fromtarget && !st.resource && st.id && same(st.id, "stall"))
		; /* that it is alive is all it says */
	else if (isanswer && st.name && stranger)
		passanswer(st.self, st.other, w);
	else if (isanswer && relay && !st.fromtarget && !st.resource && (w = findasker()) &&
	         encode(outside, st.self, st.from))
		passanswer(outside, w->jid, NULL);
	else if (isanswer)
		drop(st.name ? "no requester in the address" : "nobody asked for it");
	else if (st.iq && !same(st.type, "get") && !same(st.type, "set"))
		refuse(ILLEGAL);
	else if (!st.iq && (child(nodes, "sent", NS_CARBONS) ||
	                    child(nodes, "received", NS_CARBONS)))
		drop("a carbon copy");
	else if (relay ? st.fromtarget && !st.resource : st.fromtarget || !st.iq)
		refuse(UNKNOWN);
	else if (!st.resource && nresources == 0)
		refuse(st.iq ? NOBODY : GONE);
	else if (!st.resource)
		totarget();
	else if (st.fromtarget && stranger && !st.iq)
		handout(st.id, NULL, st.other, NULL);
	else if (stranger && w && encode(outside, st.self, st.other))
		handout(leadid(st.name + 1), outside, st.other, NULL);
	else
		refuse(NOBODY);
}

/* A stanza has come: find out for which address of ours it is and who has sent
 * it. */
static void
handlestanza(void)
{
	int unreachable;

	if (attrs.lost || !st.from || !*st.from || !st.to || !isours(st.to)) {
		drop(attrs.lost ? "its attributes are too large" :
		     "no sender, or not addressed to us");
		return;
	}
	*stpncpy(st.self, st.to, strcspn(st.to, "/")) = '\0';
	st.resource = strchr(st.to, '/');
	if (!st.resource || !decode(st.other, st.resource + 1, '\0'))
		*st.other = '\0';
	st.fromtarget = matches(target, st.from, "/");
	st.name = st.fromtarget ? strchr(st.from, '/') : NULL;
	st.sender = st.name ? findresource(st.name + 1) : NULL;
	st.iq = same(st.kind, "iq");
	st.error = same(st.type, "error");
	unreachable = haserror("remote-server-not-found") || haserror("remote-server-timeout");
	if (st.sender && (unreachable || haserror("service-unavailable")) && ask.granted &&
	    now >= ask.extra) {
		/* does its client say so, or a server, as it has left or cannot be reached? a
		 * probe tells, but everybody answers it, so not each time */
		ask.extra = AFTER(askmin);
		ask.next = now;
	}
	if (!st.fromtarget && isours(st.from)) {
		handleping(st.id ? st.id : "");
	} else if (same(st.kind, "presence")) {
		handlepresence();
	} else {
		/* what a server may have sent is no sign that it does not hang */
		if (st.sender && !unreachable && !haserror("recipient-unavailable"))
			recover(st.sender);
		route();
	}
}

/* ---- stream ---- */

/* There is a sign of life from the server. */
static void
alive(void)
{
	if (state != ONLINE)
		return;
	pinged = 0;
	deadline = keepalive ? AFTER(keepalive) : LLONG_MAX;
}

/* Put the handshake: SHA-1 in lower-case hex of the stream id and the secret
 * (XEP-0114 3). */
static void
handshake(void)
{
	unsigned char digest[br_sha1_SIZE];
	char hex[2 * br_sha1_SIZE + 1];
	br_sha1_context sha1;
	size_t i;

	br_sha1_init(&sha1);
	br_sha1_update(&sha1, st.id, strlen(st.id));
	br_sha1_update(&sha1, secret, strlen(secret));
	br_sha1_out(&sha1, digest);
	for (i = 0; i < sizeof(digest); i++)
		snprintf(hex + 2 * i, 3, "%02x", digest[i]);
	putall(&out, "<handshake>", hex, "</handshake>");
}

/* The server's stream header has come: remember the prefixes that it declares;
 * our own declares `stream' too. Then authenticate. */
static void
startstream(const char **atts)
{
	static const char why[] = "not a component port: unexpected stream header";
	int isstream = 0;

	decls.len = decls.lost = 0;
	for (; *atts; atts += 2)
		if (same(atts[0], "xmlns:stream")) {
			isstream = same(atts[1], NS_STREAM);
		} else if (!strncmp(atts[0], "xmlns:", 6)) {
			put(&decls, atts[0], strlen(atts[0]) + 1);
			put(&decls, atts[1], strlen(atts[1]) + 1);
		}
	/* what is missing may not have fitted */
	if (attrs.lost || decls.lost)
		end("the stream header is too large", "policy-violation");
	else if (!same(st.kind, "stream:stream") || !st.id)
		end(why, "bad-format");
	else if (!isstream || !st.ns || !same(st.ns, NS_COMPONENT))
		end(why, "invalid-namespace");
	else
		handshake();
}

/* The condition and text of the stream error (RFC 6120 4.9) that has come. */
static const char *
streamerror(void)
{
	static char why[LINEMAX];
	Node *text = child(nodes, "text", NULL);

	if (!text || body.lost || *text->end == '/')
		return condition(nodes);
	snprintf(why, sizeof(why), "%s: %.*s", condition(nodes),
	         (int)strcspn(text->end + 1, "<"), text->end + 1);
	return why;
}

/* An element of the stream has come. Once the server has accepted the handshake
 * we are online. */
static void
handleelement(void)
{
	int isknown = !st.ns || same(st.ns, NS_COMPONENT) ||
	              same(st.ns, "jabber:client") || same(st.ns, "jabber:server");
	int isstanza = isknown && (same(st.kind, "iq") || same(st.kind, "presence") ||
	                          same(st.kind, "message"));

	if (isstanza && state == ONLINE) {
		handlestanza();
	} else if (isstanza) {
		end("stanza before the handshake was complete", "bad-format");
	} else if (same(st.kind, "stream:error")) {
		end(streamerror(), NULL);
	} else if (state == ONLINE) {
		drop("not a stanza");
	} else if (same(st.kind, "handshake")) {
		state = ONLINE;
		onlinetime = now;
		count.connections++;
		say("online: %s at %s port %s%s", domain, host, port,
		    *tlspin ? " with TLS" : "");
		alive();
		ask.pause = askmin * 1000LL;
		askpresence(0);
	}
}

/* ---- parsing ---- */

/* What expat allocates is counted: it keeps each name it has seen, and every user
 * can send us new ones. Above the hard limit there is no more. The size is in the
 * first of two words in front of each block, which keep it aligned. */
static void *
resize(void *p, size_t size)
{
	size_t *b = p ? (size_t *)p - 2 : NULL;
	size_t had = b ? *b : 0;

	if (size > PARSERHARD - (heap - had) || !(b = realloc(b, 2 * sizeof(*b) + size)))
		return NULL;
	heap = heap - had + size;
	*b = size;
	return b + 2;
}

static void *
allocate(size_t size)
{
	return resize(NULL, size);
}

static void
release(void *p)
{
	if (p) {
		heap -= *((size_t *)p - 2);
		free((size_t *)p - 2);
	}
}

static void XMLCALL
startelement(void *data, const char *name, const char **atts)
{
	(void)data;
	if (++depth > 2)
		addelement(name, atts);
	else
		startstanza(name, atts);
	put(&body, ">", 1);
	st.tagend = body.len;
	if (depth == 1)
		startstream(atts);
}

static void XMLCALL
endelement(void *data, const char *name)
{
	(void)data;
	if (--depth == 0)
		end("the server has closed the stream", NULL);
	/* nothing has come since its start tag: make that an empty element's */
	if (body.len == st.tagend) {
		body.s[st.tagend - 1] = '/';
		put(&body, ">", 1);
	} else {
		putall(&body, "</", name, ">");
	}
	if (depth != 1)
		return;
	handleelement();
	/* a fresh parser has to follow one that remembers too much, or may soon
	 * have counted more bytes than a long holds on 32-bit machines */
	if (!ending && (!mayread() || heap > PARSERSOFT || parsed > 1L << 30))
		XML_StopParser(parser, XML_TRUE);
}

/* Text. That between stanzas, white space to keep the connection alive, is gone when
 * the next one begins. */
static void XMLCALL
characters(void *data, const char *s, int n)
{
	(void)data;
	putescaped(&body, s, (size_t)n, "&<>\r");
}

/* What no other handler is for. Document types, comments and processing
 * instructions are not for XMPP (RFC 6120 11.1). */
static void XMLCALL
otherwise(void *data, const char *s, int n)
{
	(void)data;
	if (n >= 3 && *s == '<' && s[2] != '[' &&
	    (strncmp(s, "<?xml", 5) || !isspace((unsigned char)s[5])))
		end("the server sent XML that XMPP forbids", "restricted-xml");
}

/* Some expats have this function and hold the end of a stanza back for more
 * input, until they are told not to; others of the same version have not. */
XML_Bool XML_SetReparseDeferralEnabled(XML_Parser, XML_Bool);
#pragma weak XML_SetReparseDeferralEnabled

/* Expat 2.9 would rather see the 64-bit forms of XML_GetCurrentByteIndex and
 * XML_GetCurrentByteCount, which older ones have not: what is built with either
 * has to run with both. */
#ifdef __GNUC__
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
#endif

static void
freeparser(void)
{
	XML_ParserFree(parser);
	parser = NULL;
#ifdef __GLIBC__
	malloc_trim(0); /* or it keeps what the largest stanza has taken */
#endif
}

/* Forget requests and resources, which are worth nothing without the connection,
 * and what the stream has said, read or not. */
static void
reset(void)
{
	Request *r;

	for (r = requests; r < requests + nused; r++)
		move(r, FREE);
	ask.extra = due.next = due.last = 0;
	due.nout = due.shared = 0;
	makeid(due.id, "due");
	shedding = ask.granted = unanswered = second = depth = suspended = 0;
	due.check = NEVER;
	removeresource(NULL);
	freeparser();
	in.len = 0;
}

/* Make a fresh parser that stands inside the elements opened so far: none, or
 * the stream. Without memory the stream has to end, and there may be no
 * parser. */
static void
newparser(void)
{
	static const XML_Memory_Handling_Suite memory = { allocate, resize, release };
	static const char root[] = "<stream:stream>";

	freeparser();
	parser = XML_ParserCreate_MM("UTF-8", &memory, NULL);
	parsed = depth ? (XML_Index)strlen(root) : 0;
	if (!parser || (depth && !XML_Parse(parser, root, (int)parsed, 0))) {
		ending = strerror(ENOMEM);
		return;
	}
	if (XML_SetReparseDeferralEnabled)
		XML_SetReparseDeferralEnabled(parser, XML_FALSE);
	XML_SetElementHandler(parser, startelement, endelement);
	XML_SetCharacterDataHandler(parser, characters);
	XML_SetDefaultHandler(parser, otherwise);
}

/* The parser gave up, or a handler has told it to. */
static void
endbroken(void)
{
	enum XML_Error error = XML_GetErrorCode(parser);
	XML_Index at = XML_GetCurrentByteIndex(parser) - parsed;

	/* once the stream is open, a document type is bad syntax to expat */
	if (error == XML_ERROR_INVALID_TOKEN && at >= 2 &&
	    at < (XML_Index)in.len && !memcmp(in.s + at - 2, "<!D", 3))
		otherwise(NULL, in.s + at - 2, 3);
	else if (error == XML_ERROR_NO_MEMORY)
		end("a stanza needs more memory than PARSERHARD", "policy-violation");
	else
		end(XML_ErrorString(error), "not-well-formed");
}

/* Parse what is in `in', up to where the out buffer has no room for another
 * stanza: then the parser is suspended. If it stops while there is room it has
 * kept too much, and the rest is for a fresh one. If the stream has to end,
 * `ending' says why. */
static void
parse(void)
{
	enum XML_Status status;
	size_t used;

	while (in.len > 0 && !ending && mayread()) {
		status = suspended ? XML_ResumeParser(parser) :
		         XML_Parse(parser, in.s, (int)in.len, 0);
		suspended = status == XML_STATUS_SUSPENDED && !mayread();
		if (status == XML_STATUS_ERROR) {
			endbroken();
		} else if (status == XML_STATUS_OK) {
			parsed += (XML_Index)in.len;
			in.len = 0;
		} else if (!suspended) {
			used = (size_t)(XML_GetCurrentByteIndex(parser) +
			                XML_GetCurrentByteCount(parser) - parsed);
			in.len -= used;
			memmove(in.s, in.s + used, in.len);
			newparser();
		}
	}
}

/* ---- TLS ---- */

/* Read the pins in tlspin, 64 digits each: they are all the trust there is. 0 if
 * they are malformed. */
static int
readpins(void)
{
	const char *s;
	size_t n = 0;

	for (s = tlspin; *s; s++)
		if (n < sizeof(pins) - 1 && isxdigit((unsigned char)*s))
			n += (size_t)snprintf(pins + n, 3, n % 3 ? "%c:" : "%c", toupper(*s));
		else if (n % 96 ? *s != ':' : !strchr(", \t\n", *s))
			return 0;
	return n % 96 == 0 && (n > 0 || !*tlspin);
}

/* BearSSL's validator that knows the server's key serves us, except that the
 * key is the one in the first certificate, if that has a pin. What the chain
 * holds besides does not matter. */
static void
append(const br_x509_class **ctx, const unsigned char *s, size_t n)
{
	(void)ctx;
	br_sha256_update(&tls.hash, s, n);
	br_x509_decoder_push(&tls.certificate, s, n);
}

static void
endcert(const br_x509_class **ctx)
{
	(void)ctx;
	tls.class.append = br_x509_knownkey_vtable.append; /* no other is looked at */
}

static unsigned
endchain(const br_x509_class **ctx)
{
	const br_x509_pkey *key = br_x509_decoder_get_pkey(&tls.certificate);
	unsigned char digest[br_sha256_SIZE];
	size_t i;

	(void)ctx;
	if (key)
		tls.known.pkey = *key;
	br_sha256_out(&tls.hash, digest);
	for (i = 0; i < sizeof(digest); i++)
		snprintf(tls.fingerprint + 3 * i, 4, "%02X:", digest[i]);
	for (i = 0; pins[i]; i += 96)
		if (!strncmp(pins + i, tls.fingerprint, 96))
			return (unsigned)br_x509_decoder_last_error(&tls.certificate);
	return BR_ERR_X509_NOT_TRUSTED;
}

/* Make the engine ready for a new connection. 0 without random numbers. */
static int
starttls(void)
{
	static br_x509_minimal_context unused;
	static const uint16_t suites[] = {
		BR_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
		BR_TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		BR_TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
		BR_TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		BR_TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
		BR_TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
	};
	int i, isname = !strchr(host, ':') && host[strspn(host, "0123456789.")];

	br_ssl_client_init_full(&tls.client, &unused, NULL, 0);
	br_ssl_engine_set_versions(eng, BR_TLS12, BR_TLS12);
	br_ssl_engine_set_suites(eng, suites, LEN(suites));
	for (i = br_md5_ID; i < br_sha256_ID; i++)
		br_ssl_engine_set_hash(eng, i, NULL);
	br_ssl_engine_add_flags(eng, BR_OPT_NO_RENEGOTIATION);
	tls.class = br_x509_knownkey_vtable;
	tls.class.append = append;
	tls.class.end_cert = endcert;
	tls.class.end_chain = endchain;
	tls.known.vtable = &tls.class;
	tls.known.usages = BR_KEYTYPE_KEYX | BR_KEYTYPE_SIGN;
	br_ssl_engine_set_x509(eng, &tls.known.vtable);
	br_sha256_init(&tls.hash);
	br_x509_decoder_init(&tls.certificate, NULL, NULL);
	br_ssl_engine_set_buffer(eng, tls.records, sizeof(tls.records), 1);
	return br_ssl_client_reset(&tls.client, isname ? host : NULL, 0);
}

/* Why the connection has ended. Without TLS the engine is all zero, which reads
 * as closed without an error. */
static const char *
tlserror(void)
{
	static char why[160];
	int error = br_ssl_engine_last_error(eng);

	if (br_ssl_engine_current_state(eng) != BR_SSL_CLOSED)
		return "connection cut without a TLS close";
	if (error == BR_ERR_OK)
		return "the server has closed the connection";
	if (error == BR_ERR_UNSUPPORTED_VERSION || error == BR_ERR_BAD_VERSION ||
	    error == BR_ERR_RECV_FATAL_ALERT + 70)
		return "the server does not speak TLS 1.2";
	if (error == BR_ERR_X509_NOT_TRUSTED)
		snprintf(why, sizeof(why), "the server's certificate is not in tlspin; "
		         "its fingerprint is %.95s", tls.fingerprint);
	else
		snprintf(why, sizeof(why), "TLS failed: BearSSL error %d (above %d: "
		         "an alert from the server)", error, BR_ERR_RECV_FATAL_ALERT);
	return why;
}

/* Which of these TLS has: something to write to the socket (BR_SSL_SENDREC), or
 * for us to read (TLSUNREAD), which its end is, too: that may come in one piece
 * with the last data. */
enum { TLSUNREAD = BR_SSL_RECVAPP | BR_SSL_CLOSED };
static unsigned
tlshas(unsigned what)
{
	return *tlspin ? br_ssl_engine_current_state(eng) & what : 0;
}

/* What the socket is to be given next, *s, and how many bytes of it there are.
 * In TLS the engine first takes what it can of the out buffer. If that was the
 * last of the stream it is closed, and reads what still comes by itself, but
 * for what it holds already. */
static size_t
unsent(unsigned char **s)
{
	size_t len = out.len - outpos;

	*s = (unsigned char *)out.s + outpos;
	if (!*tlspin)
		return len;
	if (len > 0 && (*s = br_ssl_engine_sendapp_buf(eng, &len))) {
		len = MIN(len, out.len - outpos);
		memcpy(*s, out.s + outpos, len);
		br_ssl_engine_sendapp_ack(eng, len);
		br_ssl_engine_flush(eng, 0);
		outpos += len;
		bytesout += len;
	}
	if (state == CLOSING && outpos == out.len && tlshas(BR_SSL_SENDAPP)) {
		while (br_ssl_engine_recvapp_buf(eng, &len))
			br_ssl_engine_recvapp_ack(eng, len);
		br_ssl_engine_close(eng);
	}
	*s = br_ssl_engine_sendrec_buf(eng, &len);
	return len;
}

/* ---- connection ---- */

/* Close the socket, if there is one, and log why, unless that is known. Then go
 * on with the next address at once; if none is left, wait before the next
 * round. While nobody is there that is at most a second, and all this is logged
 * only in the first round and about every quarter of an hour; a server that is
 * there but does not keep us is left alone for longer each time, up to
 * backoffmax. Jitter keeps many proxies from coming back at once. A connection
 * that has lasted has proved itself: what it was refused before is forgotten,
 * and the next round begins with all addresses. */
static void
disconnect(const char *why)
{
	int isnews = nrounds == 0 || nrounds % 1000 == 1;
	char address[64] = "?";
	long long ms;

	if (state == OPENING || state == ONLINE)
		say("disconnected: %s", why);
	else if (state == CLOSING && quitting)
		exit(0);
	else if (state == RESOLVING && isnews)
		say("resolve: %s port %s: %s", host, port, why);
	if (state == CONNECTING && isnews) {
		getnameinfo(server->ai_addr, server->ai_addrlen, address,
		            sizeof(address), NULL, 0, NI_NUMERICHOST);
		say("connect: %s port %s: %s", address, port, why);
	}
	reset();
	if (fd >= 0)
		close(fd);
	fd = -1;
	br_ssl_client_zero(&tls.client);
	outpos = out.len = 0;
	if (server)
		server = server->ai_next;
	if (now - onlinetime >= backoffmax * 1000LL) {
		backoff = FIRSTPAUSE;
		server = NULL;
	}
	onlinetime = LLONG_MAX;
	state = WAITING;
	deadline = now;
	if (server)
		return;
	ms = nrounds == 0 ? backoff : FIRSTPAUSE;
	ms = ms / 2 + (long long)uniform((uint64_t)ms / 2);
	deadline += ms;
	if (isnews)
		say("waiting: %lld.%lld s before the next attempt to connect",
		    ms / 1000, ms / 100 % 10);
	if (nrounds == 0)
		backoff = MIN(2 * backoff, backoffmax * 1000LL);
}

/* Begin to connect to the next address; after the last, look up host for a new
 * round. That may block for long: signals that end us do so at once
 * meanwhile. */
static void
attempt(void)
{
	static const struct addrinfo hints = { .ai_socktype = SOCK_STREAM };
	int error = 0;

	if (!server) {
		if (servers)
			freeaddrinfo(servers);
		nrounds++;
		state = RESOLVING;
		if (quitting)
			exit(0);
		error = getaddrinfo(host, port, &hints, &servers);
		now = milliseconds();
		server = servers = error ? NULL : servers;
	}
	if (error) {
		disconnect(gai_strerror(error));
		return;
	}
	state = CONNECTING;
	deadline = AFTER(patience);
	fd = socket(server->ai_family, server->ai_socktype, server->ai_protocol);
	if (fd < 0 || fcntl(fd, F_SETFL, O_NONBLOCK) < 0 ||
	    (connect(fd, server->ai_addr, server->ai_addrlen) < 0 &&
	     errno != EINPROGRESS && errno != EINTR))
		disconnect(strerror(errno));
}

/* End the stream, but let what waits in the out buffer go out first, within
 * CLOSETIME. A signal may come while there is no stream: then there is nothing
 * to wait for. */
static void
hangup(const char *why)
{
	if (quitting)
		sayunsaid();
	say("%s: %s", quitting ? "stopping" : "disconnected", why);
	if (state < OPENING)
		exit(0);
	ending = NULL;
	reset();
	putall(&out, "</stream:stream>");
	state = CLOSING;
	deadline = now + CLOSETIME;
}

/* Write as much of the out buffer as the socket takes. If writing fails for
 * good, nothing more is written: reading tells why, and an engine that can read
 * only after it has written is closed. After the last of the stream we send no
 * more: what still comes is only read so that the server can read our last
 * words. */
static void
flush(void)
{
	unsigned char *s;
	size_t len;
	ssize_t n;
	Request *r;

	while ((len = unsent(&s)) > 0 && (n = write(fd, s, len)) > 0) {
		jamtime = AFTER(patience);
		if (!hasroom())
			alive();
		if (*tlspin) {
			br_ssl_engine_sendrec_ack(eng, (size_t)n);
			continue;
		}
		outpos += (size_t)n;
		bytesout += (size_t)n;
	}
	if (len > 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
		out.len = outpos;
		shutdown(fd, SHUT_WR);
		if (!tlshas(BR_SSL_RECVREC))
			br_ssl_client_zero(&tls.client);
	}
	/* what waits for an engine that is closed goes nowhere */
	if (outpos < out.len && !tlshas(BR_SSL_CLOSED)) {
		/* a server that reads nothing while its own writing waits, as ejabberd, waits
		 * for us to read: from now on we do, and refuse, until all is written */
		if (!mayread() && now >= jamtime) {
			jammed = 1;
			say("jammed: the server has read nothing for %u s", patience);
		}
		return;
	}
	outpos = out.len = 0;
	jammed = 0;
	if (tlshas(BR_SSL_SENDREC))
		return;
	/* only now what was in it begins to wait for its answer */
	for (r = lists[OPEN].prev; r->due == UNWRITTEN; r = r->prev)
		r->due = answertime ? AFTER(answertime) : NEVER;
	if (state == CLOSING)
		shutdown(fd, SHUT_WR);
}

/* Read once. In TLS the bytes of the socket are for the engine, which takes
 * none while it holds data of a record, or after its end; we take what it
 * holds. No tag ends without a `>', so until one comes there is nothing to
 * parse: long ones are not looked at again with each piece of them. */
static void
receive(void)
{
	unsigned char *s = (unsigned char *)in.s + in.len;
	size_t len = in.size - in.len, size = len;
	ssize_t n;

	if (*tlspin)
		s = br_ssl_engine_recvrec_buf(eng, &len);
	n = s ? read(fd, s, len) : 0;
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
		return;
	if (n <= 0 && !tlshas(BR_SSL_RECVAPP)) {
		disconnect(n < 0 ? strerror(errno) : tlserror());
		return;
	}
	/* while there is no room only what it reads is a sign of life */
	if (hasroom())
		alive();
	len = (size_t)n;
	if (*tlspin && s)
		br_ssl_engine_recvrec_ack(eng, len);
	if (*tlspin && (s = br_ssl_engine_recvapp_buf(eng, &len))) {
		len = MIN(len, size);
		memcpy(in.s + in.len, s, len);
		br_ssl_engine_recvapp_ack(eng, len);
	}
	bytesin += len;
	if (state == CLOSING)
		return;
	in.len += len;
	if (in.len == in.size || memchr(in.s + in.len - len, '>', len))
		parse();
}

/* An attempt to connect has come to its end. If there is a server, open our
 * stream (RFC 6120 4.2). Without a version, as XEP-0114 has it: jabberd2 would
 * send features before the handshake. Without memory `ending' is set. */
static void
finishconnect(void)
{
	int error = 0, one = 1;
	socklen_t len = sizeof(error);

	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0 || error) {
		disconnect(strerror(error ? error : errno));
		return;
	}
	/* an answer is written at once, there is nothing to gather */
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	nrounds = 0;
	state = OPENING;
	deadline = AFTER(patience);
	putall(&out, "<?xml version='1.0'?><stream:stream xmlns='" NS_COMPONENT
	       "' xmlns:stream='" NS_STREAM "'");
	putattr(&out, "to", domain);
	put(&out, ">", 1);
	newparser();
	if (*tlspin && !starttls())
		ending = "no random numbers for TLS";
}

/* What the connection has waited for has not come, or a pause is over. If the
 * server is silent, ask ourselves through it whether the route works
 * (XEP-0199), once. */
static void
overdue(void)
{
	if (state == WAITING) {
		attempt();
	} else if (state == OPENING) {
		hangup("no answer to the handshake in time");
	} else if (state == ONLINE && !pinged) {
		pingself();
		alive();
		pinged = 1;
	} else {
		/* we may have been stopped: our last words may still be here, or a
		 * server that left us no room has begun to read again */
		flush();
		if (now >= deadline)
			disconnect(state == CONNECTING ? strerror(ETIMEDOUT) : "the server is silent");
	}
}

/* SIGUSR1 came: log what was counted since the start, and who is online. */
static void
report(void)
{
	char refused[512] = "";
	Resource *w;
	size_t i, n = 0;

	reporting = 0;
	for (i = 0; i < LEN(refusals); i++)
		n += (size_t)snprintf(refused + n, sizeof(refused) - n, ", %lu %s",
		                      refusals[i].n, refusals[i].condition);
	say("counted: %lu requests, %lu untracked, %lu answers, %lu late, %lu messages"
	    "%s, %lu dropped, %lu connections, %d online, %d open, %llu bytes in, "
	    "%llu bytes out", count.requests, count.untracked, count.answers,
	    count.late, count.messages, refused, count.dropped, count.connections,
	    nresources, nopen, bytesin, bytesout);
	for (w = resources; w < resources + nresources; w++)
		say("resource: %.*s: %d open, %lu handed out, %lu answered, "
		    "%lu taken back, %lu timed out, %llu ms, %s%s", SHOWN, w->jid,
		    w->open, w->nhanded, w->nanswered, w->nretried, w->nlate,
		    w->waited / MAX(w->nanswered, 1),
		    w->pings > 1 ? "stalled" : w->drains ? "draining" : "up",
		    choice == STANDBY && w == choose("", 0, NULL) ? ", in charge" : "");
}

/* How long, in ms, poll() may wait: until something is to be done though nothing has
 * come. */
static int
waittime(void)
{
	long long next = nunsaid > 0 ? MIN(deadline, linetime) : deadline;

	/* to poll() on Linux a socket is full when two thirds of its buffer are, but it
	 * takes more; and a server may read nothing until we do */
	if (!mayread())
		next = MIN(next, now + WRITETIME);
	if (state == ONLINE && hasroom())
		next = MIN(MIN(next, sweeptime < NEVER ? NEVER : ask.next), pingtime());
	/* nothing else will wake us for these */
	if (state >= OPENING && mayread() && (suspended || tlshas(TLSUNREAD) ||
	    (hasroom() && lists[FAILED].next != lists + FAILED)))
		next = now;
	return (int)MIN(MAX(next - now, 0), INT_MAX);
}

static void
run(void)
{
	struct pollfd p[2] = { { .fd = wake[0], .events = POLLIN } };
	int n;
	char c[64];

	for (;;) {
		p[1].fd = fd;
		/* TLS may have to write first */
		p[1].events = state >= OPENING && mayread() &&
		              (!*tlspin || tlshas(TLSUNREAD | BR_SSL_RECVREC)) ? POLLIN : 0;
		if (state == CONNECTING || (!*tlspin && out.len > 0) || tlshas(BR_SSL_SENDREC))
			p[1].events |= POLLOUT;
		n = poll(p, 2, waittime());
		now = milliseconds();
		if (now >= linetime)
			sayunsaid();
		/* a signal has interrupted poll(): it has also written to the pipe. What one
		 * read leaves there only wakes us again. */
		if (n < 0 || (p[0].revents && read(wake[0], c, sizeof(c)) < 0))
			continue;
		if (reporting)
			report();
		if (quitting && state != CLOSING)
			hangup("signal");
		if (state == CONNECTING && p[1].revents)
			finishconnect();
		if (suspended) {
			/* we are online, or there would be room; what is due goes first, or
			 * what is read would take all of it again */
			chores();
			parse();
		}
		/* parse() may have filled the out buffer, or have ended the stream */
		if ((p[1].events & POLLIN) && !ending && mayread() &&
		    ((p[1].revents & ~POLLOUT) || tlshas(TLSUNREAD)))
			receive();
		if (ending)
			hangup(ending);
		if (now >= deadline)
			overdue();
		if (state == ONLINE)
			chores();
		flush();
	}
}

/* ---- main ---- */

static void
onsignal(int sig)
{
	int saved = errno;

	*(sig == SIGUSR1 ? &reporting : &quitting) = 1;
	if (quitting && state == RESOLVING)
		_exit(0);
	if (write(wake[1], "", 1) < 0)
		errno = saved; /* full: the loop will wake up all the same */
}

/* Signals wake the loop through a pipe, so that none is missed. */
static void
setsignals(void)
{
	static const int caught[] = { SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1 };
	struct sigaction sa = { .sa_handler = onsignal };
	size_t i;

	check(pipe(wake) < 0 || fcntl(wake[1], F_SETFL, O_NONBLOCK) < 0, "pipe", NULL);
	for (i = 0; i < LEN(caught); i++)
		/* nohup has it ignored */
		if (caught[i] != SIGHUP || signal(SIGHUP, SIG_IGN) != SIG_IGN)
			sigaction(caught[i], &sa, NULL);
	signal(SIGPIPE, SIG_IGN);
#ifdef SIGXFSZ
	signal(SIGXFSZ, SIG_IGN); /* a log may be at the limit of its size */
#endif
}

/* 1 if s is written as servers write a domain or bare JID: nothing else would
 * ever compare equal. */
static int
islikeservers(const char *s)
{
	return isutf8(s) && !s[strcspn(s, "/ \177ABCDEFGHIJKLMNOPQRSTUVWXYZ")] &&
	       *s && s[strlen(s) - 1] != '.';
}

/* Refuse a configuration that cannot work. */
static void
checkconfig(void)
{
	size_t node = strcspn(target, "@"), len = strlen(target);
	const char *unlike = "is empty, not UTF-8, not in lower case, holds a space or "
	                     "slash, or ends in a dot";
	const char *wrongtime = "is 0, over 30 days or less than another needs";

	check(!islikeservers(domain), "domain", unlike);
	check(!islikeservers(target), "target", unlike);
	check(!isours(domain) || strlen(domain) > PARTMAX,
	      "domain", "is not the domain of a component");
	check(node - 1 >= PARTMAX || len - node - 2 >= PARTMAX ||
	      strchr(target + node + 1, '@'), "target", "is not a bare JID, account@domain");
	check(isours(target), "target", "is at our own domain");
	check(!*secret, "secret", "is empty");
	check(!*host, "host", "is empty");
	check(!*port || strtol(port, NULL, 10) > 65535, "port", "is empty or over 65535");
	check(!readpins(), "tlspin", "is not SHA-256 fingerprints, eight at most");
	check(!isutf8(prefix) || strlen(prefix) > PARTMAX,
	      "prefix", "cannot start a resource");
	check(choice < RANDOM || choice > STANDBY,
	      "choice", "is not RANDOM, STICKY, LEASTBUSY or STANDBY");
	check(retry > 9, "retry", "is over 9");
	check(stall > TIMEMAX, "stall", wrongtime);
	check(sticktime > TIMEMAX, "sticktime", wrongtime);
	check(keepalive > TIMEMAX, "keepalive", wrongtime);
	check(backoffmax - 1 >= TIMEMAX, "backoffmax", wrongtime);
	check(patience - 1 >= TIMEMAX, "patience", wrongtime);
	check(askmin - 1 >= TIMEMAX, "askmin", wrongtime);
	check(askmax - 1 >= TIMEMAX || askmax < askmin, "askmax", wrongtime);
	check(refresh - 1 >= TIMEMAX || refresh <= patience, "refresh", wrongtime);
	check(answertime > TIMEMAX, "answertime", wrongtime);
}

int
main(int argc, char *argv[])
{
	br_prng_seeder seeder = br_prng_seeder_system(NULL);
	br_hmac_drbg_context rng;
	struct rlimit none = { 0, 0 };
	const char *terminal;
	int n;

	if (argc == 2 && same(argv[1], "-v"))
		return puts("client_proxy-" VERSION) < 0 || fflush(stdout);
	if (argc != 1) {
		fputs("usage: client_proxy [-v]\n", stderr);
		return 1;
	}
	checkconfig();
	br_hmac_drbg_init(&rng, &br_sha256_vtable, NULL, 0);
	check(!seeder || !seeder(&rng.vtable),
	      "random numbers", "the system provides no seed");
	br_hmac_drbg_generate(&rng, &salt, sizeof(salt));
	br_hmac_drbg_generate(&rng, &seed, sizeof(seed));
	/* if 0 to 2 were closed, a socket would get one of them; a core would hold the
	 * secret */
	while ((n = open("/dev/null", O_RDWR)) >= 0 && n < 3)
		;
	check(n < 0 || close(n) < 0 || setrlimit(RLIMIT_CORE, &none) < 0, "start", NULL);
	/* a write to a terminal may wait after a part of a line, so it is opened anew,
	 * with what those who share it do not see; our own may be opened though it
	 * belongs to another user */
	terminal = tcgetpgrp(2) < 0 ? ttyname(2) : "/dev/tty";
	if (terminal && (n = open(terminal, O_WRONLY | O_NOCTTY | O_NONBLOCK)) >= 0)
		check(dup2(n, 2) < 0 || close(n) < 0, "terminal", NULL);
	setsignals();
	reset();
	run();
}

