/* See LICENSE file for copyright and license details.
 *
 * client_proxy is an XMPP component (XEP-0114) behind whose address stand
 * the resources of one ordinary account, the target. It learns from the
 * target's presence which of them are online, hands each IQ request to one
 * of them, with the requester's address as the resource of `from', and leads
 * the answer back by that address (JAT, Jabber Address Translation).
 *
 * Data flows one way, and the file is written in the same order:
 *
 *	socket -> expat -> stanza (fixed tree) -> route -> out buffer -> socket
 */
#define _POSIX_C_SOURCE 200809L
#ifdef __OpenBSD__
#define _BSD_SOURCE             /* pledge */
#endif

#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/types.h>

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
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <bearssl.h>
#include <expat.h>

enum { RANDOM, STICKY, LEASTBUSY }; /* how to choose among resources */

#include "config.h"

#define LEN(x)        (sizeof(x) / sizeof((x)[0]))
#define MIN(a, b)     ((a) < (b) ? (a) : (b))
#define MAX(a, b)     ((a) > (b) ? (a) : (b))

#define NS_COMPONENT  "jabber:component:accept"
#define NS_CLIENT     "jabber:client"
#define NS_CARBONS    "urn:xmpp:carbons:2"
#define NS_STREAM     "http://etherx.jabber.org/streams"

enum {
	PARTMAX  = 1023,            /* bytes of each part of a JID, RFC 7622 3.1 */
	BAREMAX  = 2 * PARTMAX + 1,
	JIDMAX   = 3 * PARTMAX + 2,
	RESERVE  = 8192,            /* of the out buffer, for what no stanza causes */
	LARGETAG = 2048,            /* bytes of a tag that servers may not read at once */
	FIRSTPAUSE = 1000,          /* ms before the first reconnect, at most */
	CLOSETIME  = 500            /* ms for the last bytes, then the socket is closed */
};

/* One stanza and what else has to go out with it must fit. */
typedef char outsize_is_too_small[OUTSIZE >= MAXSTANZA + RESERVE ? 1 : -1];

/* Bytes in a fixed place, with one more for a NUL; full: some did not fit. */
struct buffer {
	char *s;
	size_t size, len;
	int full;
};

/* An element of the stanza, and where in body its name and namespace lie. */
struct node {
	int up;                     /* the element around it; 0: the stanza itself */
	size_t name, len, ns, nslen;
};

enum { NOTHING, OPENED, ELEMENT, CLOSED };             /* event of the parser */
enum { WAITING, CONNECTING, OPENING, ONLINE, CLOSING }; /* state of the connection */

/* Why requests are refused, how it is said (RFC 6120 8.3.3), how often. */
enum { NOBODY, UNKNOWN, LONGADDRESS, LARGE, BUSY, GONE, LATE };
static struct refusal {
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
};
static unsigned long nrequests, nuntracked, nanswers, nlate, nmessages, ndropped,
                     nconnected;
static unsigned long long bytesin, bytesout;

/* clock and choice */
static long long now;           /* ms, monotonic, taken once a turn of the loop */
static uint64_t seed;           /* of the next choice, never 0 */
static uint64_t salt;           /* of the table of requests */

/* resources of the target that are online: name, its hash, open requests, and
 * whether there was presence since the last probe */
static char resources[MAXRESOURCES][PARTMAX + 1];
static uint64_t marks[MAXRESOURCES];
static int busy[MAXRESOURCES];
static char heard[MAXRESOURCES];
static int nresources, toomany;

/* Requests that were handed out. Each is in one list: those that are open, the
 * oldest first; those that are to be answered with an error; those that have
 * been, kept until their place is needed. The first in the table are the lists'
 * heads. All but the free ones are in the bucket of their key. */
enum { FREE, OPEN, FAILED, DONE, FIRST };
static struct {
	int list, prev, next;
	int bucket, chain;          /* the next in the bucket; 0: none */
	int resource;               /* that has it, -1: none has */
	int why;                    /* it failed: one of refusals */
	long long when;             /* it was handed out */
} requests[FIRST + MAXREQUESTS];
static char keys[FIRST + MAXREQUESTS][REQUESTSIZE]; /* requester, asked, id */
static int buckets[MAXREQUESTS];
static int nused = FIRST;       /* of the table so far */
static int nopen, shedding;

/* the target's presence subscription */
static int subscribed;
static long long asktime, askpause;
static long long sweeptime;     /* when the probe that is out is overdue */

/* the out buffer: what is behind outpos waits to be written */
static char outbytes[OUTSIZE + 1];
static struct buffer out = { outbytes, OUTSIZE, 0, 0 };
static size_t outpos, outmark;

/* the stanza that is being read: what we look at in its own tag, then all else
 * as it goes out, and a tree of the elements in it, two levels deep */
static char headbytes[MAXSTANZA + 1], bodybytes[MAXSTANZA + 1];
static struct buffer head = { headbytes, MAXSTANZA, 0, 0 };
static struct buffer body = { bodybytes, MAXSTANZA, 0, 0 };
static const char *kind, *from, *to, *type, *id, *ns;
static struct node nodes[256];  /* what is beyond passes, but is not looked at */
static int nnodes, current;
static size_t largest;          /* bytes of its largest tag */
static int tagopen;             /* the last tag in body has not ended yet */

/* the parser and its input */
static XML_Parser parser;
static size_t heap;             /* bytes that expat has allocated */
static char in[INSIZE];
static size_t inlen;
static XML_Index parsed;        /* bytes the parser took before in[] */
static int depth, event, held;
static const char *fault;       /* stream error to send, RFC 6120 4.9.3 */

/* the stream */
static struct {
	char name[64], value[256];
} decls[8];                     /* the prefixes that its header declares */
static size_t ndecls;
static int isstream, authenticated;

/* TLS, if there are pins */
static unsigned char pins[8][br_sha256_SIZE], fingerprint[br_sha256_SIZE];
static size_t npins;
static br_ssl_client_context tls;
static unsigned char tlsbytes[BR_SSL_BUFSIZE_BIDI];
static br_sha256_context certhash;
static br_x509_decoder_context certificate;
static int ncerts, notified;    /* close_notify was sent */

/* the connection */
static int fd = -1, state, pinged;
static struct addrinfo *addresses, *address;
static long long deadline;      /* ms, when `state' or the server's silence ends */
static long long backoff = FIRSTPAUSE;
static int wake[2];             /* signal handlers write, the loop reads */
static volatile sig_atomic_t resolving, quitting, reporting;

/* ---- log and clock ---- */

/* Write byte c as %XX. Returns the bytes written, always 3. */
static size_t
puthex(char *dst, unsigned char c)
{
	static const char hex[] = "0123456789ABCDEF";

	dst[0] = '%';
	dst[1] = hex[c >> 4];
	dst[2] = hex[c & 15];
	return 3;
}

/* Log one line. What comes from the wire is kept to printable ASCII, the rest
 * is written as in translated addresses. */
static void
say(const char *fmt, ...)
{
	char raw[2 * JIDMAX], line[3 * sizeof(raw) + 32];
	const unsigned char *s;
	size_t n;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(raw, sizeof(raw), fmt, ap);
	va_end(ap);
	n = (size_t)sprintf(line, "client_proxy: ");
	for (s = (unsigned char *)raw; *s; s++) {
		if (*s >= ' ' && *s <= '~')
			line[n++] = (char)*s;
		else
			n += puthex(line + n, *s);
	}
	line[n++] = '\n';
	if (write(2, line, n) < 0)
		return; /* nobody is left to tell */
}

static void
die(const char *what, const char *why)
{
	say("%s: %s", what, why);
	exit(1);
}

static long long
milliseconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (long long)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* A random number below n, each as likely as the others (xorshift64*). */
static unsigned long
below(unsigned long n)
{
	unsigned long r;

	do {
		seed ^= seed >> 12;
		seed ^= seed << 25;
		seed ^= seed >> 27;
		r = (seed * 0x2545f4914f6cdd1d) >> 32;
	} while (r >= 0xffffffff - 0xffffffff % n);
	return r % n;
}

/* 1 if two strings are the same. Most differ in their first byte. */
static int
same(const char *a, const char *b)
{
	return *a == *b && !strcmp(a, b);
}

/* Spread the bits of h over all of it (the finalizer of MurmurHash3). */
static uint64_t
mix(uint64_t h)
{
	h = (h ^ h >> 33) * 0xff51afd7ed558ccd;
	h = (h ^ h >> 33) * 0xc4ceb9fe1a85ec53;
	return h ^ h >> 33;
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

/* The bytes of a JID before its resource. */
static size_t
barelen(const char *jid)
{
	const char *s = strchr(jid, '/');

	return s ? (size_t)(s - jid) : strlen(jid);
}

/* 1 if jid is [node@]domain[/resource] with our domain, and fit to be part of
 * an address that we write; servers deliver others' stanzas to us as well. */
static int
isours(const char *jid)
{
	size_t bare = barelen(jid), len = strlen(domain), node = 0;
	const char *at = memchr(jid, '@', bare);

	if (at)
		node = (size_t)(at - jid) + 1;
	return node != 1 && node <= PARTMAX + 1 && bare - node == len &&
	       !memcmp(jid + node, domain, len) && !same(jid + bare, "/");
}

/* 1 if jid is the target itself or one of its resources. */
static int
istarget(const char *jid)
{
	size_t len = strlen(target);

	return !strncmp(jid, target, len) &&
	       (jid[len] == '\0' || jid[len] == '/');
}

/* The resource of a JID, or NULL. */
static const char *
resourceof(const char *jid)
{
	const char *s = strchr(jid, '/');

	return s ? s + 1 : NULL;
}

/* 1 if str is UTF-8 (RFC 3629 4) of characters that XML has (XML 1.0 2.2), but
 * for TAB, LF and CR, which are in no JID either. */
static int
isutf8(const char *str)
{
	static const unsigned long least[] = { 0, 0x80, 0x800, 0x10000 };
	const unsigned char *s = (const unsigned char *)str;
	unsigned long c;
	int i, more;

	while ((c = *s++)) {
		if (c >= ' ' && c < 0x80)
			continue;
		if (c < 0xc0 || c > 0xf7)
			return 0;
		more = c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;
		c &= 0x3fUL >> more;
		for (i = 0; i < more; i++, s++) {
			if ((*s & 0xc0) != 0x80)
				return 0;
			c = c << 6 | (*s & 0x3f);
		}
		if (c < least[more] || (c >= 0xd800 && c <= 0xdfff) ||
		    c == 0xfffe || c == 0xffff || c > 0x10ffff)
			return 0;
	}
	return 1;
}

/* Write jid as a resource into dst[PARTMAX + 1]: printable ASCII as it is, so
 * that the target's client can read it, the rest as %XX: a server on the way
 * may refuse it, as mixed directions of writing (RFC 8266). 0 if too long. */
static int
enc(char *dst, const char *jid)
{
	const unsigned char *s;
	size_t n = 0;
	int plain;

	for (s = (const unsigned char *)jid; *s; s++) {
		plain = *s >= ' ' && *s <= '~' && *s != '%';
		if (n + (plain ? 1 : 3) > PARTMAX)
			return 0;
		if (plain)
			dst[n++] = (char)*s;
		else
			n += puthex(dst + n, *s);
	}
	dst[n] = '\0';
	return 1;
}

/* Undo enc: the resource src becomes a JID in dst[PARTMAX + 1]. 0 if it is
 * none; written out as it came it could make ill-formed XML of our stream. */
static int
dec(char *dst, const char *src)
{
	char hex[3] = "";
	size_t n;

	for (n = 0; *src; n++) {
		if (n == PARTMAX)
			return 0;
		if (*src != '%') {
			dst[n] = *src++;
			continue;
		}
		if (strspn(src + 1, "0123456789ABCDEFabcdef") < 2)
			return 0;
		memcpy(hex, src + 1, 2);
		if (!(dst[n] = (char)strtol(hex, NULL, 16)))
			return 0;
		src += 3;
	}
	dst[n] = '\0';
	return n > 0 && isutf8(dst);
}

/* ---- resources ---- */

/* Where it is in the table, or -1. */
static int
findresource(const char *name)
{
	int i;

	for (i = 0; i < nresources; i++)
		if (same(resources[i], name))
			return i;
	return -1;
}

static void
addresource(const char *name)
{
	size_t len = strlen(name);
	int i = findresource(name);

	if (i >= 0)
		heard[i] = 1;
	if (i >= 0 || strncmp(name, prefix, strlen(prefix)))
		return;
	if (len == 0 || len > PARTMAX) {
		say("ignored: %s/%s: not a legal resource", target, name);
	} else if (nresources < MAXRESOURCES) {
		memcpy(resources[nresources], name, len + 1);
		marks[nresources] = hash(0, name, len);
		heard[nresources] = 1;
		busy[nresources++] = 0;
		say("joined: %s/%s: %d online", target, name, nresources);
	} else if (!toomany) {
		say("ignored: %s/%s and any more: %d online is the limit",
		    target, name, nresources);
		toomany = 1;
	}
}

/* Remove the i-th one. The last one takes its place: there are no holes. */
static void
removeresource(int i)
{
	say("left: %s/%s: %d online", target, resources[i], nresources - 1);
	nresources--;
	if (i < nresources)
		memcpy(resources[i], resources[nresources], sizeof(resources[i]));
	marks[i] = marks[nresources];
	busy[i] = busy[nresources];
	heard[i] = heard[nresources];
	toomany = 0;
}

static void
clearresources(void)
{
	if (nresources > 0)
		say("left: %s, all of its resources: 0 online", target);
	nresources = toomany = 0;
}

/* The resource for jid[n]; there must be one. A sticky requester stays with its
 * resource while that is online, and nobody else moves when one joins or leaves
 * (rendezvous hashing: the highest of all pairs' hashes wins). */
static int
choose(int how, const char *jid, size_t n)
{
	uint64_t mark, score, best = 0;
	int i, found = 0, ties = 0;

	if (how == RANDOM)
		return (int)below((unsigned long)nresources);
	if (how == STICKY) {
		mark = hash(0, jid, n);
		for (i = 0; i < nresources; i++) {
			if ((score = mix(marks[i] ^ mark)) >= best) {
				best = score;
				found = i;
			}
		}
		return found;
	}
	for (i = 0; i < nresources; i++) {
		if (busy[i] < busy[found])
			ties = 0;
		if (busy[i] <= busy[found] && below((unsigned long)++ties) == 0)
			found = i;
	}
	return found;
}

/* ---- out buffer and serialising ---- */

/* Put n bytes at the end of a buffer: all of them or none. */
static void
put(struct buffer *b, const char *s, size_t n)
{
	if (n > b->size - b->len) {
		b->full = 1;
		return;
	}
	memcpy(b->s + b->len, s, n);
	b->len += n;
}

static void
putstr(struct buffer *b, const char *s)
{
	put(b, s, strlen(s));
}

/* Put s[n] with references for what is `special' there (XML 1.0 2.4, 3.3.3), as
 * few as can be: servers count bytes as written, and what its sender may send
 * has to fit. Most often there is nothing special, so copy it, then look. */
static void
putescaped(struct buffer *b, const char *s, size_t n, const char *special)
{
	static const char *const refs[UCHAR_MAX + 1] = {
		['&'] = "&amp;", ['<'] = "&lt;", ['>'] = "&gt;", ['\r'] = "&#13;",
		['\n'] = "&#10;", ['\t'] = "&#9;", ['\''] = "&apos;", ['"'] = "&quot;"
	};
	size_t start = b->len, i;

	put(b, s, n);
	b->s[b->len] = '\0';
	i = strcspn(b->s + start, special);
	b->len = start + i;
	for (; i < n && !b->full; i++) {
		/* a text may have any > but that of ]]> */
		if (!strchr(special, s[i]) ||
		    (s[i] == '>' && (b->len < 2 || memcmp(b->s + b->len - 2, "]]", 2))))
			put(b, s + i, 1);
		else
			putstr(b, refs[(unsigned char)s[i]]);
	}
}

/* Put an attribute, if it has a value, in the quotes that need less escapes. */
static void
putattr(struct buffer *b, const char *name, const char *value)
{
	const char *s, *special = "&<'\t\n\r", *quote = "'";
	size_t n;
	long more = 0;

	if (!value)
		return;
	n = strcspn(value, special);
	for (s = value; value[n] && *s; s++)
		more += (*s == '\'') - (*s == '"');
	if (more > 0) {
		special = "&<\"\t\n\r";
		quote = "\"";
	}
	put(b, " ", 1);
	putstr(b, name);
	put(b, "=", 1);
	put(b, quote, 1);
	if (value[n])
		putescaped(b, value, strlen(value), special);
	else
		put(b, value, n);
	put(b, quote, 1);
}

/* 1 if whatever one more stanza causes fits into the out buffer. */
static int
hasroom(void)
{
	return OUTSIZE - out.len >= MAXSTANZA + RESERVE;
}

/* Put the start of a stanza, without what is NULL. A stanza goes out whole or
 * not at all: it stays only if commit returns 1. That returns 0 if there was no
 * room or the stanza is larger than servers take. */
static void
begin(const char *name, const char *t, const char *i, const char *f,
      const char *d)
{
	outmark = out.len;
	out.full = 0;
	put(&out, "<", 1);
	putstr(&out, name);
	putattr(&out, "type", t);
	putattr(&out, "id", i);
	putattr(&out, "from", f);
	putattr(&out, "to", d);
}

static int
commit(void)
{
	if (!out.full && out.len - outmark <= MAXSTANZA)
		return 1;
	out.len = outmark;
	return 0;
}

/* Put the stanza, from f, to t. 0 if it is too large. White space follows a large
 * tag: a server whose expat defers parsing (see newparser) looks at it again when
 * twice as much has come, and all that follows waits with it. */
static int
forward(const char *f, const char *t)
{
	if (head.full || body.full)
		return 0;
	begin(kind, *type ? type : NULL, id, f, t);
	largest += out.len - outmark;
	put(&out, body.s, body.len);
	if (!commit())
		return 0;
	if (largest > LARGETAG)
		for (; largest > 0 && out.len - outmark < MAXSTANZA; largest--)
			put(&out, " ", 1);
	return 1;
}

/* Put an error (RFC 6120 8.3) about a stanza with this name and id, from f, to t. */
static void
puterror(const char *name, const char *i, const char *f, const char *t, int why)
{
	struct refusal *r = refusals + why;

	r->n++;
	begin(name, "error", i, f, t);
	putstr(&out, "><error type='");
	putstr(&out, r->type);
	putstr(&out, "'><");
	putstr(&out, r->condition);
	putstr(&out, " xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></");
	putstr(&out, name);
	put(&out, ">", 1);
	if (commit())
		return;
	ndropped++;
	say("dropped: error %s to %s: too large", r->condition, t);
}

static void
putpresence(const char *t, const char *f, const char *d)
{
	begin("presence", t, NULL, f, d);
	put(&out, "/>", 2);
	commit();
}

/* ---- requests ---- */

/* Every request gets one answer (RFC 6120 8.2.3): if not from the resource that
 * has it, then an error from us. Answers need none of this to find their way. */

/* Put request r at the end of a list. */
static void
move(int r, int list)
{
	int had = requests[r].list;

	requests[requests[r].prev].next = requests[r].next;
	requests[requests[r].next].prev = requests[r].prev;
	requests[r].list = list;
	requests[r].next = list;
	requests[r].prev = requests[list].prev;
	requests[requests[r].prev].next = requests[list].prev = r;
	nopen += (list == OPEN) - (had == OPEN);
	if (requests[r].resource >= 0)
		busy[requests[r].resource] += (list == OPEN) - (had == OPEN);
}

/* Forget resources and requests: without the connection that they were handed
 * out on, nobody can answer them any more. */
static void
forget(void)
{
	int r;

	clearresources();
	memset(buckets, 0, sizeof(buckets));
	nopen = shedding = 0;
	for (r = 0; r < FIRST; r++)
		requests[r].prev = requests[r].next = r;
	nused = FIRST;
}

/* Write what tells a request from others into key[REQUESTSIZE]. Returns the
 * bytes, or 0 if they are too many. */
static size_t
makekey(char *key, const char *requester, const char *asked)
{
	const char *parts[] = { requester, asked, id ? id : "" };
	size_t i, len, n = 0;

	for (i = 0; i < LEN(parts); i++) {
		len = strlen(parts[i]) + 1;
		if (len > REQUESTSIZE - n)
			return 0;
		memcpy(key + n, parts[i], len);
		n += len;
	}
	return n;
}

static void
unchain(int r)
{
	int *p = buckets + requests[r].bucket;

	while (*p != r)
		p = &requests[*p].chain;
	*p = requests[r].chain;
}

/* 1 if the table can take no more: load is shed until some are answered. */
static int
isfull(void)
{
	int full = requests[FREE].next == FREE && requests[DONE].next == DONE &&
	           nused == (int)LEN(requests);

	if (full && !shedding)
		say("busy: %d requests are open: refusing more", nopen);
	shedding = full || (shedding && nopen > MAXREQUESTS / 2);
	return full;
}

/* The request in the tree has been handed to a resource; -1: to nobody who could
 * be seen to leave. */
static void
track(const char *asked, int resource)
{
	char key[REQUESTSIZE];
	size_t n = makekey(key, from, asked);
	int r = requests[FREE].prev;

	if (n == 0) {
		if (nuntracked++ == 0)
			say("untracked: request from %s: its addresses and id are longer "
			    "than %d bytes, and so may be others'", from, REQUESTSIZE);
		return;
	}
	if (r == FREE && nused < (int)LEN(requests)) {
		r = nused++;
		requests[r].prev = requests[r].next = r;
		requests[r].list = FREE;
	} else if (r == FREE) {
		r = requests[DONE].next;
		unchain(r);
	}
	memcpy(keys[r], key, n);
	requests[r].bucket = (int)(hash(salt, key, n) % MAXREQUESTS);
	requests[r].chain = buckets[requests[r].bucket];
	buckets[requests[r].bucket] = r;
	requests[r].resource = resource;
	requests[r].when = now;
	move(r, OPEN);
}

/* The answer in the tree, for requester from the address that was asked, ends its
 * request: the one that its resource has if there are several alike. 0 if it
 * must not pass, because an error has taken its place. */
static int
answered(const char *requester, const char *asked)
{
	char key[REQUESTSIZE];
	size_t n = makekey(key, requester, asked);
	int r, found = 0, fit, best = 0, pass;

	if (n == 0)
		return 1;
	for (r = buckets[hash(salt, key, n) % MAXREQUESTS]; r; r = requests[r].chain) {
		if (memcmp(keys[r], key, n))
			continue;
		fit = requests[r].list == DONE ? 1 : 2;
		if (requests[r].resource >= 0 && resourceof(from) &&
		    same(resources[requests[r].resource], resourceof(from)))
			fit = 3;
		if (fit >= best) {
			best = fit;
			found = r;
		}
	}
	pass = best != 1;
	if (found) {
		unchain(found);
		move(found, FREE);
	}
	return pass;
}

/* A resource, or if name is NULL each of them, has gone: so have its requests. */
static void
gone(const char *name)
{
	int i = name ? findresource(name) : -1, r, next, n = nopen;

	if (name && i < 0)
		return;
	for (r = requests[OPEN].next; r != OPEN; r = next) {
		next = requests[r].next;
		if (requests[r].resource < 0)
			continue;
		if (!name || requests[r].resource == i) {
			requests[r].why = GONE;
			move(r, FAILED);
			requests[r].resource = -1;
		} else if (requests[r].resource == nresources - 1) {
			requests[r].resource = i;
		}
	}
	if (n > nopen)
		say("failed: %d requests in the hands of who leaves", n - nopen);
	if (name)
		removeresource(i);
	else
		clearresources();
}

/* When the oldest request will have waited too long, in ms. */
static long long
expiry(void)
{
	int r = requests[OPEN].next;

	return r == OPEN || !answertime ? LLONG_MAX :
	       requests[r].when + answertime * 1000LL;
}

/* Answer what has waited too long or has failed, as far as there is room. 1 if
 * there is more. */
static int
expire(void)
{
	const char *requester, *asked, *i;
	int r, n = nopen;

	while (expiry() <= now) {
		r = requests[OPEN].next;
		i = requests[r].resource < 0 ? NULL : resources[requests[r].resource];
		if (n == nopen)
			say("timed out: request of %s to %s%s%s, and maybe others", keys[r],
			    keys[r] + strlen(keys[r]) + 1, i ? " at " : "", i ? i : "");
		requests[r].why = LATE;
		move(r, FAILED);
		requests[r].resource = -1;
	}
	while ((r = requests[FAILED].next) != FAILED && hasroom()) {
		requester = keys[r];
		asked = requester + strlen(requester) + 1;
		i = asked + strlen(asked) + 1;
		puterror("iq", *i ? i : NULL, asked, requester, requests[r].why);
		move(r, DONE);
	}
	return r != FAILED;
}

/* ---- routing ---- */

static void
drop(const char *why)
{
	ndropped++;
	say("dropped: %s %s from %s to %s: %s", kind, *type ? type : "(no type)",
	    from ? from : "(nobody)", to ? to : "(nobody)", why);
}

/* Answer the stanza with an error, from the address that was asked. Errors never
 * answer errors (RFC 6120 8.3.1). */
static void
refuse(int why)
{
	if (same(type, "error"))
		ndropped++;
	else
		puterror(kind, id, to, from, why);
}

/* Ask for the target's presence: for the subscription until it is granted,
 * each time later, then for what may have been missed (RFC 6121 3.1, 4.3). On
 * Prosody a probe before that would withdraw the request. */
static void
ask(void)
{
	putpresence(subscribed ? "probe" : "subscribe", domain, target);
	if (subscribed) {
		asktime = now + refresh * 1000LL;
		sweeptime = now + patience * 1000LL;
		memset(heard, 0, sizeof(heard));
	} else {
		asktime = now + askpause;
		askpause = MIN(2 * askpause, askmax * 1000LL);
	}
}

/* A probe has been answered, for some: who else was online has gone without a
 * word, as when its server's machine has died. */
static void
sweep(void)
{
	int i;

	sweeptime = LLONG_MAX;
	if (!memchr(heard, 1, (size_t)nresources))
		return;
	for (i = nresources - 1; i >= 0; i--)
		if (!heard[i])
			gone(resources[i]);
}

/* Do what is due while online. 1 if there is more, for which there is no room. */
static int
chores(void)
{
	if (now >= sweeptime)
		sweep();
	if (now >= asktime)
		ask();
	return expire();
}

/* The target or its server does not let us see its presence. */
static void
denied(const char *why)
{
	say("not subscribed: %s: %s", target, why);
	gone(NULL);
	if (subscribed) {
		subscribed = 0;
		askpause = askmin * 1000LL;
		asktime = now + askpause;
	}
}

/* 1 if body has what there, or it is NULL. */
static int
matches(const char *what, size_t start, size_t len)
{
	return !what || (strlen(what) == len && !memcmp(body.s + start, what, len));
}

/* The first element in element n, with this name and in this namespace if they
 * are not NULL; 0 if there is none. */
static int
child(int n, const char *name, const char *space)
{
	int i;

	for (i = 1; i < nnodes; i++)
		if (nodes[i].up == n &&
		    matches(name, nodes[i].name, nodes[i].len) &&
		    matches(space, nodes[i].ns, nodes[i].nslen))
			return i;
	return 0;
}

/* The condition of an error, element n: the name of the first one in it. */
static const char *
condition(int n)
{
	static char name[64];
	int i = child(n, NULL, NULL);

	if (!i)
		return "no condition given";
	snprintf(name, sizeof(name), "%.*s", (int)nodes[i].len,
	         body.s + nodes[i].name);
	return name;
}

/* Presence to self, an address of ours. */
static void
presence(const char *self)
{
	const char *name = resourceof(from);
	int asks = same(type, "subscribe"), probes = same(type, "probe");

	if (!istarget(from)) {
		if (asks || probes)
			putpresence("unsubscribed", self, from);
	} else if (asks || probes) {
		if (asks)
			putpresence("subscribed", self, from);
		putpresence(NULL, self, from);
	} else if (!same(to, domain)) {
		; /* only what our domain is told says who is online */
	} else if (!*type && name) {
		addresource(name);
	} else if (same(type, "unavailable")) {
		gone(name);
	} else if (same(type, "subscribed")) {
		if (!subscribed)
			say("subscribed: %s", target);
		subscribed = 1;
		ask();
	} else if (same(type, "unsubscribed")) {
		denied("it refuses or has withdrawn the subscription");
	} else if (same(type, "error")) {
		denied(condition(child(0, "error", NULL)));
	}
}

/* Write bare/resource into dst[JIDMAX + 1]. */
static void
join(char *dst, const char *bare, const char *resource)
{
	size_t n = strlen(bare);

	memcpy(dst, bare, n);
	dst[n] = '/';
	strcpy(dst + n + 1, resource);
}

/* Write the address below self that stands for jid into dst[JIDMAX + 1]. 0 if it
 * is too long. */
static int
standin(char *dst, const char *self, const char *jid)
{
	char resource[PARTMAX + 1];

	if (!enc(resource, jid))
		return 0;
	join(dst, self, resource);
	return 1;
}

/* Hand a request, for which asked is to answer, to dst. That is this resource of
 * the target or, if it is -1, somebody else. */
static void
handout(const char *self, const char *asked, const char *dst, int resource)
{
	char src[JIDMAX + 1];

	if (!standin(src, self, from)) {
		refuse(LONGADDRESS);
	} else if (isfull()) {
		refuse(BUSY);
	} else if (!forward(src, dst)) {
		refuse(LARGE);
	} else {
		nrequests++;
		track(asked, resource);
	}
}

/* A request for the target: hand it to one of its resources. */
static void
request(const char *self)
{
	char dst[JIDMAX + 1];
	int i;

	if (resourceof(to) || nresources == 0) {
		refuse(NOBODY);
	} else {
		i = choose(choice, from, strlen(from));
		join(dst, target, resources[i]);
		handout(self, to, dst, i);
	}
}

/* An answer, from src, one of our addresses, to the requester. One that cannot
 * pass still ends the request. */
static void
response(const char *src, const char *requester)
{
	int failed = same(type, "error") ? child(0, "error", NULL) : 0;

	/* does the client say so, or its server, because it has gone? probe */
	if (failed && child(failed, "service-unavailable", NULL) &&
	    istarget(from) && subscribed)
		asktime = MIN(asktime, sweeptime < LLONG_MAX ? sweeptime : now);
	if (!answered(requester, src))
		nlate++;
	else if (forward(src, requester))
		nanswers++;
	else
		puterror(kind, id, src, requester, LARGE);
}

/* 1 if a message without a body only tells how others fare, as chat states,
 * receipts and markers do (XEP-0085, 0184, 0333), or wants no trace: it is not
 * worth an error. */
static int
isfleeting(void)
{
	return same(type, "error") || same(type, "headline") ||
	       (!child(0, "body", NULL) &&
	        (child(0, NULL, "http://jabber.org/protocol/chatstates") ||
	         child(0, NULL, "urn:xmpp:receipts") ||
	         child(0, NULL, "urn:xmpp:chat-markers:0")));
}

/* A message from src, one of our addresses, to dst. */
static void
message(const char *src, const char *dst)
{
	if (forward(src, dst))
		nmessages++;
	else
		refuse(LARGE);
}

/* A message for the target: all of a conversation goes to one of its resources. */
static void
conversation(const char *self)
{
	char src[JIDMAX + 1], dst[JIDMAX + 1];
	int i;

	if (nresources == 0 && isfleeting()) {
		ndropped++;
	} else if (nresources == 0) {
		refuse(GONE);
	} else if (!standin(src, self, from)) {
		refuse(LONGADDRESS);
	} else {
		i = choose(STICKY, from, barelen(from));
		join(dst, target, resources[i]);
		message(src, dst);
	}
}

/* Handle the stanza that has come. Below the exceptions it reads like the tables
 * of the man page: the first line that fits applies. */
static void
route(void)
{
	char self[BAREMAX + 1], src[JIDMAX + 1], other[PARTMAX + 1];
	int iq = same(kind, "iq"), error = same(type, "error");
	int asks = iq && (same(type, "get") || same(type, "set"));
	int answers = iq && (error || same(type, "result"));
	int mine, member, stranger;  /* from the target; for its resource; for others */
	const char *below;           /* the resource of our address */
	size_t bare;

	if (!from || !*from || !to || !isours(to)) {
		drop("not from anybody to us");
		return;
	} else if (ns && !same(ns, NS_COMPONENT) && !same(ns, NS_CLIENT)) {
		drop("unknown namespace");
		return;
	}
	bare = barelen(to);
	memcpy(self, to, bare);
	self[bare] = '\0';
	below = to[bare] ? to + bare + 1 : NULL;
	if (!below || !dec(other, below))
		*other = '\0';
	mine = istarget(from);
	member = istarget(other) && resourceof(other) && *resourceof(other);
	stranger = relay && *other && !istarget(other) && !isours(other);

	if (isours(from))
		; /* our own ping, or what became of it */
	else if (same(kind, "presence"))
		presence(self);
	else if (asks && !mine)
		request(self);
	else if (asks && stranger && resourceof(from) && standin(src, self, other))
		handout(self, src, other, -1);
	else if (asks)
		refuse(relay && below ? NOBODY : UNKNOWN);
	else if (answers && mine && resourceof(from) && *other)
		response(self, other);
	else if (answers && relay && !mine && member && standin(src, self, from))
		response(src, other);
	else if (iq)
		drop(!answers ? "unknown type" : mine ? "no requester in the address" :
		     "not from a resource of the target");
	else if (!relay || (mine && !below))
		refuse(UNKNOWN);
	else if (child(0, "sent", NS_CARBONS) || child(0, "received", NS_CARBONS))
		drop("a copy");
	else if (mine && stranger)
		message(self, other);
	else if (!mine && !below)
		conversation(self);
	else if (error && !mine && member && standin(src, self, from))
		message(src, other);
	else
		refuse(NOBODY);
}

/* ---- parsing ---- */

/* What expat allocates, with the size in front, is counted: it keeps each name
 * it has seen, and every user can send us new ones. Above the hard limit there
 * is no more. */
union block {
	size_t size;
	long double align;
};

static void *
resize(void *p, size_t size)
{
	union block *b = p ? (union block *)p - 1 : NULL;
	size_t had = b ? b->size : 0;

	if (heap - had + size > PARSERHARD ||
	    !(b = realloc(b, sizeof(*b) + size)))
		return NULL;
	heap = heap - had + size;
	b->size = size;
	return b + 1;
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
		heap -= ((union block *)p - 1)->size;
		free((union block *)p - 1);
	}
}

/* 1 if the parser remembers too much, or may soon have counted more bytes than
 * a long holds on small machines. */
static int
isworn(void)
{
	return heap > PARSERSOFT || parsed > 1L << 30;
}

/* Put the prefixes that the header of the server's stream has declared and these
 * attributes do not, since any name in the stanza may have one. */
static void
putdecls(const char **atts)
{
	const char **a;
	size_t d;

	for (d = 0; d < ndecls; d++) {
		for (a = atts; *a && !same(*a, decls[d].name); a += 2)
			;
		if (!*a)
			putattr(&body, decls[d].name, decls[d].value);
	}
}

/* Keep a string in head. Returns it, or NULL if it does not fit. */
static const char *
keep(const char *s)
{
	size_t start = head.len;

	put(&head, s, strlen(s) + 1);
	return head.len > start ? head.s + start : NULL;
}

/* A stanza, or the stream itself, begins. Its namespace does not go out: our
 * stream has its own, and servers do not understand jabber:client there. What
 * does not fit is left out: whom to answer may still come after it. */
static void
startstanza(const char *name, const char **atts)
{
	static const struct {
		const char *name, **value;
	} own[] = {
		{ "from", &from }, { "to", &to }, { "type", &type }, { "id", &id },
		{ "xmlns", &ns }
	};
	size_t i;

	head.len = body.len = 0;
	head.full = body.full = 0;
	nnodes = tagopen = 1;
	from = to = type = id = ns = NULL;
	if (!(kind = keep(name)))
		kind = "";
	putdecls(atts);
	for (; *atts; atts += 2) {
		for (i = 0; i < LEN(own); i++)
			if (same(own[i].name, *atts))
				break;
		if (i < LEN(own))
			*own[i].value = keep(atts[1]);
		else
			putattr(&body, atts[0], atts[1]);
	}
	if (!type)
		type = "";
	largest = body.len;
}

/* End the last tag in body before content. */
static void
endtag(void)
{
	if (tagopen)
		put(&body, ">", 1);
	tagopen = 0;
}

/* An element in the stanza begins. */
static void
addelement(const char *name, const char **atts)
{
	struct node *n = NULL;
	size_t start;

	endtag();
	start = body.len;
	put(&body, "<", 1);
	putstr(&body, name);
	if (depth <= 4 && nnodes < (int)LEN(nodes) && !body.full) {
		n = nodes + nnodes;
		n->up = depth == 3 ? 0 : current;
		n->name = start + 1;
		n->len = body.len - n->name;
		n->nslen = 0;
		if (depth == 3)
			current = nnodes;
		nnodes++;
	}
	for (; *atts; atts += 2) {
		putattr(&body, atts[0], atts[1]);
		if (n && same(*atts, "xmlns")) {
			n->nslen = strlen(atts[1]);
			n->ns = body.len - 1 - n->nslen;
		}
	}
	tagopen = 1;
	largest = MAX(largest, body.len - start);
}

/* Remember the prefixes that the header of the server's stream declares; our
 * own declares `stream' too. What does not fit counts as too large. */
static void
savedecls(const char **atts)
{
	ndecls = 0;
	isstream = 0;
	for (; *atts; atts += 2) {
		if (same(atts[0], "xmlns:stream")) {
			isstream = same(atts[1], NS_STREAM);
		} else if (strncmp(atts[0], "xmlns:", 6)) {
			continue;
		} else if (ndecls == LEN(decls) ||
		           strlen(atts[0]) >= sizeof(decls[0].name) ||
		           strlen(atts[1]) >= sizeof(decls[0].value)) {
			body.full = 1;
		} else {
			strcpy(decls[ndecls].name, atts[0]);
			strcpy(decls[ndecls++].value, atts[1]);
		}
	}
}

static int
isstanza(void)
{
	return same(kind, "iq") || same(kind, "presence") ||
	       same(kind, "message");
}

/* Stop the parser; `what' is then handled outside of it. */
static void
stop(int what)
{
	event = what;
	XML_StopParser(parser, XML_TRUE);
}

static void XMLCALL
startelement(void *data, const char *name, const char **atts)
{
	(void)data;
	if (++depth > 2) {
		if (!body.full)
			addelement(name, atts);
		return;
	}
	startstanza(name, atts);
	if (depth == 1) {
		savedecls(atts);
		stop(OPENED);
	}
}

static void XMLCALL
endelement(void *data, const char *name)
{
	(void)data;
	if (--depth == 0) {
		stop(CLOSED);
		return;
	}
	if (tagopen) {
		put(&body, "/>", 2);
	} else {
		put(&body, "</", 2);
		putstr(&body, name);
		put(&body, ">", 1);
	}
	tagopen = 0;
	if (depth > 1)
		return;
	if (!authenticated || !isstanza()) {
		stop(ELEMENT);
		return;
	}
	route();
	if (!hasroom() || isworn())
		stop(NOTHING);
}

/* Text between stanzas is white space that keeps the connection alive. */
static void XMLCALL
characters(void *data, const char *s, int n)
{
	(void)data;
	if (depth < 2 || body.full)
		return;
	endtag();
	putescaped(&body, s, (size_t)n, "&<>\r");
}

/* What no other handler is for. Document types, comments and processing
 * instructions are not for XMPP (RFC 6120 11.1). */
static void XMLCALL
otherwise(void *data, const char *s, int n)
{
	(void)data;
	if (n < 3 || *s != '<' || (s[1] == '!' && s[2] == '[') ||
	    (depth == 0 && n > 6 && !memcmp(s, "<?xml", 5) && s[5] <= ' '))
		return;
	fault = "restricted-xml";
	XML_StopParser(parser, XML_FALSE);
}

/* Some expats have this function and hold the end of a stanza back for more
 * input, until they are told not to; others of the same version have not. */
XML_Bool XML_SetReparseDeferralEnabled(XML_Parser, XML_Bool);
#pragma weak XML_SetReparseDeferralEnabled

static void
freeparser(void)
{
	XML_ParserFree(parser);
	parser = NULL;
#ifdef __GLIBC__
	malloc_trim(0); /* or it keeps what the largest stanza has taken */
#endif
}

/* Make a fresh parser that stands inside of the elements opened so far: none,
 * or the stream. 0 without memory. */
static int
newparser(void)
{
	static const XML_Memory_Handling_Suite memory = {
		allocate, resize, release
	};
	static const char root[] = "<stream:stream>";

	freeparser();
	if (!(parser = XML_ParserCreate_MM("UTF-8", &memory, NULL)))
		return 0;
	if (XML_SetReparseDeferralEnabled)
		XML_SetReparseDeferralEnabled(parser, XML_FALSE);
	parsed = depth ? (XML_Index)strlen(root) : 0;
	if (depth && XML_Parse(parser, root, (int)parsed, 0) == XML_STATUS_ERROR)
		return 0;
	XML_SetElementHandler(parser, startelement, endelement);
	XML_SetCharacterDataHandler(parser, characters);
	XML_SetDefaultHandler(parser, otherwise);
	return 1;
}

/* ---- stream ---- */

/* Open our stream (RFC 6120 4.2). Without a version, as XEP-0114 has it:
 * jabberd2 would send features before the handshake. 0 without memory. */
static int
openstream(void)
{
	forget();
	outpos = out.len = inlen = 0;
	depth = event = held = authenticated = subscribed = 0;
	sweeptime = LLONG_MAX;
	fault = NULL;
	putstr(&out, "<?xml version='1.0'?><stream:stream xmlns='" NS_COMPONENT
	       "' xmlns:stream='" NS_STREAM "'");
	putattr(&out, "to", domain);
	put(&out, ">", 1);
	return newparser();
}

static void
closestream(void)
{
	if (fault) {
		putstr(&out, "<stream:error><");
		putstr(&out, fault);
		putstr(&out, " xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>");
	}
	putstr(&out, "</stream:stream>");
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
	br_sha1_update(&sha1, id, strlen(id));
	br_sha1_update(&sha1, secret, strlen(secret));
	br_sha1_out(&sha1, digest);
	for (i = 0; i < sizeof(digest); i++)
		sprintf(hex + 2 * i, "%02x", digest[i]);
	putstr(&out, "<handshake>");
	putstr(&out, hex);
	putstr(&out, "</handshake>");
}

/* The server's stream header has come. Returns NULL or what is wrong. */
static const char *
opened(void)
{
	if (!same(kind, "stream:stream") || !id)
		fault = "bad-format";
	else if (!isstream || !ns || !same(ns, NS_COMPONENT))
		fault = "invalid-namespace";
	else if (head.full || body.full)
		fault = "policy-violation";
	if (fault)
		return "this is no component port: its stream header is not one";
	handshake();
	return NULL;
}

/* A stream error (RFC 6120 4.9) has come. Returns its condition and text. */
static const char *
streamerror(void)
{
	static char why[1024];
	int i = child(0, "text", NULL);
	const char *s;

	if (!i || body.full)
		return condition(0);
	s = body.s + nodes[i].name;
	s += strcspn(s, ">") + 1;
	snprintf(why, sizeof(why), "%s: %.*s", condition(0),
	         (int)strcspn(s, "<"), s);
	return why;
}

/* An element of the stream that is not a stanza, or one too early, has
 * come. Returns NULL, or why the stream has to end. */
static const char *
element(void)
{
	if (same(kind, "stream:error"))
		return streamerror();
	if (authenticated) {
		drop("not a stanza");
	} else if (isstanza()) {
		fault = "bad-format";
		return "the server sends stanzas before the handshake is done";
	} else if (same(kind, "handshake")) {
		authenticated = 1;
		nconnected++;
		say("online: %s at %s port %s%s", domain, host, port,
		    npins ? " with TLS" : "");
		askpause = askmin * 1000LL;
		ask();
	}
	return NULL;
}

/* The parser gave up. Returns why. */
static const char *
broken(void)
{
	enum XML_Error error = XML_GetErrorCode(parser);
	XML_Index at = XML_GetCurrentByteIndex(parser) - parsed;

	/* once the stream is open, a document type is bad syntax to expat */
	if (error == XML_ERROR_INVALID_TOKEN && at >= 2 &&
	    at < (XML_Index)inlen && !memcmp(in + at - 2, "<!D", 3))
		fault = "restricted-xml";
	if (fault) /* or a handler has found something */
		return "the server sends XML that is forbidden in XMPP";
	if (error == XML_ERROR_NO_MEMORY) {
		fault = "policy-violation";
		return "the server sends more in one stanza than may be kept";
	}
	fault = "not-well-formed";
	return XML_ErrorString(error);
}

/* Parse in[inlen], up to where the out buffer has room for no other stanza:
 * then the parser is held. When it is worn, the rest is for a fresh one.
 * Returns NULL, or why the stream has to end. */
static const char *
parse(void)
{
	enum XML_Status status;
	const char *why = NULL;
	size_t used;

	while (!why && (!held || hasroom())) {
		event = NOTHING;
		status = held ? XML_ResumeParser(parser) :
		         XML_Parse(parser, in, (int)inlen, 0);
		held = status == XML_STATUS_SUSPENDED;
		if (status == XML_STATUS_ERROR)
			return broken();
		if (status == XML_STATUS_OK) {
			parsed += (XML_Index)inlen;
			inlen = 0;
			break;
		}
		if (event == OPENED)
			why = opened();
		else if (event == ELEMENT)
			why = element();
		else if (event == CLOSED)
			why = "the server has closed the stream";
		if (depth == 1 && isworn() && hasroom()) {
			used = (size_t)(XML_GetCurrentByteIndex(parser) +
			                XML_GetCurrentByteCount(parser) - parsed);
			inlen -= used;
			memmove(in, in + used, inlen);
			held = 0;
			if (!newparser())
				return broken();
		}
	}
	return why;
}

/* ---- TLS ---- */

/* The settings are pins: what they allow is all the trust there is. Read them.
 * 0 if they are malformed. */
static int
readpins(void)
{
	static const char digits[] = "0123456789abcdef0123456789ABCDEF";
	const char *s, *d;
	unsigned char *pin;
	size_t n = 0;

	for (s = tlspin; *s; s++) {
		if (!(d = strchr(digits, *s))) {
			if (n % 64 ? *s != ':' : !strchr(", \t\n", *s))
				return 0;
			continue;
		}
		if (n / 64 == LEN(pins))
			return 0;
		pin = &pins[n / 64][n % 64 / 2];
		*pin = (unsigned char)(*pin << 4 | ((d - digits) & 15));
		n++;
	}
	npins = n / 64;
	return n % 64 == 0 && (npins > 0 || !*tlspin);
}

/* What BearSSL calls for a chain of certificates: the first one is the server's,
 * the others do not matter. */
static void
startchain(const br_x509_class **ctx, const char *name)
{
	(void)ctx;
	(void)name;
	ncerts = 0;
	br_sha256_init(&certhash);
	br_x509_decoder_init(&certificate, NULL, NULL);
}

static void
startcert(const br_x509_class **ctx, uint32_t len)
{
	(void)ctx;
	(void)len;
	ncerts++;
}

static void
append(const br_x509_class **ctx, const unsigned char *s, size_t n)
{
	(void)ctx;
	if (ncerts == 1) {
		br_sha256_update(&certhash, s, n);
		br_x509_decoder_push(&certificate, s, n);
	}
}

static void
endcert(const br_x509_class **ctx)
{
	(void)ctx;
}

static unsigned
endchain(const br_x509_class **ctx)
{
	unsigned char differ;
	size_t i, j;
	int pinned = 0;

	(void)ctx;
	br_sha256_out(&certhash, fingerprint);
	for (i = 0; i < npins; i++) {
		for (differ = 0, j = 0; j < sizeof(fingerprint); j++)
			differ |= pins[i][j] ^ fingerprint[j];
		pinned |= differ == 0;
	}
	return pinned ? (unsigned)br_x509_decoder_last_error(&certificate) :
	       BR_ERR_X509_NOT_TRUSTED;
}

static const br_x509_pkey *
getkey(const br_x509_class *const *ctx, unsigned *usages)
{
	(void)ctx;
	if (usages)
		*usages = BR_KEYTYPE_KEYX | BR_KEYTYPE_SIGN;
	return br_x509_decoder_get_pkey(&certificate);
}

/* Make the engine ready for a new connection. 0 without random numbers. */
static int
starttls(void)
{
	static const br_x509_class class = {
		sizeof(br_x509_class *), startchain, startcert, append, endcert,
		endchain, getkey
	};
	static const br_x509_class *x509 = &class;
	static const uint16_t suites[] = {
		BR_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
		BR_TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		BR_TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
		BR_TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		BR_TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
		BR_TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
	};
	br_ssl_engine_context *e = &tls.eng;
	int isname = !strchr(host, ':') && host[strspn(host, "0123456789.")];

	br_ssl_client_zero(&tls);
	br_ssl_engine_set_versions(e, BR_TLS12, BR_TLS12);
	br_ssl_engine_set_suites(e, suites, LEN(suites));
	br_ssl_engine_set_hash(e, br_sha256_ID, &br_sha256_vtable);
	br_ssl_engine_set_hash(e, br_sha384_ID, &br_sha384_vtable);
	br_ssl_engine_set_hash(e, br_sha512_ID, &br_sha512_vtable);
	br_ssl_engine_set_prf_sha256(e, br_tls12_sha256_prf);
	br_ssl_engine_set_prf_sha384(e, br_tls12_sha384_prf);
	br_ssl_engine_set_default_aes_gcm(e);
	br_ssl_engine_set_default_chapol(e);
	br_ssl_engine_set_default_ecdsa(e);
	br_ssl_engine_set_default_rsavrfy(e);
	br_ssl_engine_add_flags(e, BR_OPT_NO_RENEGOTIATION);
	br_ssl_engine_set_x509(e, &x509);
	br_ssl_engine_set_buffer(e, tlsbytes, sizeof(tlsbytes), 1);
	notified = 0;
	return br_ssl_client_reset(&tls, isname ? host : NULL, 0);
}

/* Why TLS has ended. */
static const char *
tlserror(void)
{
	static char why[256];
	int error = br_ssl_engine_last_error(&tls.eng);
	size_t i, n;

	if (br_ssl_engine_current_state(&tls.eng) & BR_SSL_SENDAPP)
		return "the connection was cut, TLS did not end";
	if (br_ssl_engine_current_state(&tls.eng) != BR_SSL_CLOSED)
		return "the server has cut the TLS handshake: is this a TLS port?";
	if (error == BR_ERR_OK)
		return "the server has closed the connection";
	if (error == BR_ERR_X509_NOT_TRUSTED) {
		n = (size_t)sprintf(why, "the server's certificate is not in tlspin, it is ");
		for (i = 0; i < sizeof(fingerprint); i++)
			n += (size_t)sprintf(why + n, "%s%02X", i ? ":" : "", fingerprint[i]);
	} else if (error == BR_ERR_UNSUPPORTED_VERSION || error == BR_ERR_BAD_VERSION ||
	           error == BR_ERR_RECV_FATAL_ALERT + 70) {
		return "the server does not speak TLS 1.2";
	} else if (error > BR_ERR_RECV_FATAL_ALERT) {
		sprintf(why, "the server ends TLS with alert %d (RFC 5246 7.2)",
		        error - BR_ERR_RECV_FATAL_ALERT);
	} else {
		sprintf(why, "TLS failed: error %d of BearSSL", error);
	}
	return why;
}

/* 1 if a system call has to be tried again later. */
static int
again(void)
{
	return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
}

/* 1 if TLS has something to write to the socket, or for us to read. */
static int
unsent(void)
{
	return npins && (br_ssl_engine_current_state(&tls.eng) & BR_SSL_SENDREC);
}

static int
unread(void)
{
	return npins && (br_ssl_engine_current_state(&tls.eng) & BR_SSL_RECVAPP);
}

/* Write the records that wait. -1 if that fails for good, else 0. */
static int
sendrecords(void)
{
	unsigned char *rec;
	size_t len;
	ssize_t n;

	while ((rec = br_ssl_engine_sendrec_buf(&tls.eng, &len))) {
		if ((n = write(fd, rec, len)) < 0)
			return again() ? 0 : -1;
		br_ssl_engine_sendrec_ack(&tls.eng, (size_t)n);
	}
	return 0;
}

/* Like read from and write to the connection, whether it is TLS or not. When
 * pull returns 0 or fails, lost says why. It takes several records at once, but
 * not so many that a server could keep us here. */
static ssize_t
pull(char *dst, size_t size)
{
	unsigned char *src;
	size_t len, done = 0;
	ssize_t n;
	int i;

	if (!npins)
		return read(fd, dst, size);
	for (i = 0; i < 64 && done < size; i++) {
		sendrecords(); /* if that fails, reading tells why */
		if ((src = br_ssl_engine_recvapp_buf(&tls.eng, &len))) {
			len = MIN(len, size - done);
			memcpy(dst + done, src, len);
			br_ssl_engine_recvapp_ack(&tls.eng, len);
			done += len;
		} else if ((src = br_ssl_engine_recvrec_buf(&tls.eng, &len))) {
			if ((n = read(fd, src, len)) <= 0)
				return done > 0 ? (ssize_t)done : n;
			br_ssl_engine_recvrec_ack(&tls.eng, (size_t)n);
		} else if (!unsent()) {
			return (ssize_t)done;
		}
	}
	errno = EAGAIN;
	return done > 0 ? (ssize_t)done : -1;
}

static ssize_t
push(const char *src, size_t size)
{
	unsigned char *dst;
	size_t len, done = 0;

	if (!npins)
		return write(fd, src, size);
	for (;;) {
		if (sendrecords() < 0)
			return -1;
		dst = br_ssl_engine_sendapp_buf(&tls.eng, &len);
		if (!dst || done == size)
			break;
		len = MIN(len, size - done);
		memcpy(dst, src + done, len);
		br_ssl_engine_sendapp_ack(&tls.eng, len);
		done += len;
		if (done == size)
			br_ssl_engine_flush(&tls.eng, 0);
	}
	errno = EAGAIN;
	return done > 0 || size == 0 ? (ssize_t)done : -1;
}

static const char *
lost(ssize_t n)
{
	return n < 0 ? strerror(errno) : npins ? tlserror() :
	       "the server has closed the connection";
}

/* We send no more. What still comes is only read so that the server can read our
 * last words; a closing engine does so itself, with what it does not hold yet. */
static void
endwriting(void)
{
	size_t len;

	if (npins && !notified) {
		notified = 1;
		while (br_ssl_engine_recvapp_buf(&tls.eng, &len))
			br_ssl_engine_recvapp_ack(&tls.eng, len);
		br_ssl_engine_close(&tls.eng);
		sendrecords();
	}
	if (!unsent())
		shutdown(fd, SHUT_WR);
}

/* ---- connection ---- */

/* Wait before the next attempt: up to a second at first, doubled each time up
 * to backoffmax, with jitter so that many proxies do not come back at once. */
static void
rest(void)
{
	long long ms = backoff / 2 + (long long)below((unsigned long)backoff / 2);

	say("waiting: %lld.%lld s before the next attempt to connect",
	    ms / 1000, ms / 100 % 10);
	state = WAITING;
	deadline = now + ms;
	backoff = MIN(2 * backoff, backoffmax * 1000LL);
}

static void
sayaddress(const char *why)
{
	char h[64] = "?", p[8] = "?";

	getnameinfo(address->ai_addr, address->ai_addrlen, h, sizeof(h),
	            p, sizeof(p), NI_NUMERICHOST | NI_NUMERICSERV);
	say("connect: %s port %s: %s", h, p, why);
}

/* Begin to connect to `address', or to those after it if that fails at once.
 * When all have failed, rest. */
static void
attempt(void)
{
	for (; address; address = address->ai_next) {
		fd = socket(address->ai_family, address->ai_socktype,
		            address->ai_protocol);
		if (fd >= 0 && fcntl(fd, F_SETFL, O_NONBLOCK) == 0 &&
		    fcntl(fd, F_SETFD, FD_CLOEXEC) == 0 &&
		    (connect(fd, address->ai_addr, address->ai_addrlen) == 0 ||
		     errno == EINPROGRESS)) {
			state = CONNECTING;
			deadline = now + patience * 1000LL;
			return;
		}
		sayaddress(strerror(errno));
		if (fd >= 0)
			close(fd);
		fd = -1;
	}
	rest();
}

/* Look up host and begin to connect. Looking up may block for long: signals
 * that end us do so at once while it does. */
static void
resolve(void)
{
	static const struct addrinfo hints = {
		.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM
	};
	int error;

	if (addresses)
		freeaddrinfo(addresses);
	addresses = NULL;
	resolving = 1;
	if (quitting)
		exit(0);
	error = getaddrinfo(host, port, &hints, &addresses);
	resolving = 0;
	now = milliseconds();
	if (error) {
		say("resolve: %s port %s: %s", host, port, gai_strerror(error));
		addresses = NULL;
	}
	address = addresses;
	attempt();
}

/* Close the socket and log why, unless that is known. Then exit, or try the next
 * address if this one has led to no handshake, or rest. */
static void
disconnect(const char *why)
{
	if (why && state != CLOSING)
		say("disconnected: %s", why);
	forget();
	close(fd);
	fd = -1;
	if (npins)
		br_ssl_client_zero(&tls);
	freeparser();
	outpos = out.len = 0;
	held = 0;
	if (quitting)
		exit(0);
	address = authenticated ? NULL : address->ai_next;
	attempt();
}

/* End the stream, but let what waits in the out buffer go out first. */
static void
hangup(const char *why)
{
	say("%s: %s", quitting ? "stopping" : "disconnected", why);
	forget();
	closestream();
	freeparser();
	inlen = 0;
	held = 0;
	state = CLOSING;
	deadline = now + CLOSETIME;
}

/* There is a sign of life from the server. */
static void
alive(void)
{
	pinged = 0;
	deadline = keepalive ? now + keepalive * 1000LL : LLONG_MAX;
}

/* The server has been silent. Ask ourselves through it whether the route works
 * (XEP-0199), or give up. */
static void
silent(void)
{
	if (pinged) {
		disconnect("the server is silent");
		return;
	}
	begin("iq", "get", "ping", domain, domain);
	putstr(&out, "><ping xmlns='urn:xmpp:ping'/></iq>");
	commit();
	alive();
	pinged = 1;
}

static void
flush(void)
{
	ssize_t n;

	if (outpos == out.len && !unsent())
		return;
	n = push(out.s + outpos, out.len - outpos);
	if (n < 0 && again())
		return;
	if (n < 0)
		outpos = out.len; /* reading will tell why */
	else
		outpos += (size_t)n;
	bytesout += n > 0 ? (unsigned long long)n : 0;
	if (held && state == ONLINE)
		alive();
	if (outpos < out.len)
		return;
	outpos = out.len = 0;
	if (state == CLOSING && !unsent())
		endwriting();
}

/* Parse what has been read and write what comes of it. */
static void
process(void)
{
	const char *why;

	do {
		if ((why = parse()))
			break;
		if (authenticated && state == OPENING) {
			state = ONLINE;
			backoff = FIRSTPAUSE;
			alive();
		}
		flush();
	} while (held && out.len == 0);
	if (why) {
		hangup(why);
		flush();
	}
}

/* Read once. No tag ends without a `>', so until one comes there is nothing
 * to parse: long ones are not looked at again with each piece of them. */
static void
receive(void)
{
	ssize_t n = pull(in + inlen, sizeof(in) - inlen);

	if (n < 0 && again())
		return;
	if (n <= 0) {
		disconnect(lost(n));
		return;
	}
	if (state == CLOSING)
		return;
	if (state == ONLINE)
		alive();
	bytesin += (unsigned long long)n;
	inlen += (size_t)n;
	if (inlen == sizeof(in) || memchr(in + inlen - n, '>', (size_t)n))
		process();
}

/* An attempt to connect has come to its end. */
static void
connected(void)
{
	int error = 0, one = 1;
	socklen_t len = sizeof(error);

	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0)
		error = errno;
	if (error) {
		sayaddress(strerror(error));
		disconnect(NULL);
		return;
	}
	/* an answer is written at once, there is nothing to gather */
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	state = OPENING;
	deadline = now + patience * 1000LL;
	if (npins && !starttls())
		disconnect("no random numbers for TLS");
	else if (!openstream())
		disconnect(strerror(ENOMEM));
	else
		flush();
}

/* What the connection has waited for has not come, or a pause is over. */
static void
overdue(void)
{
	if (state == WAITING) {
		resolve();
	} else if (state == OPENING) {
		hangup("the server does not answer the handshake in time");
	} else if (state == ONLINE) {
		silent();
	} else {
		if (state == CONNECTING)
			sayaddress(strerror(ETIMEDOUT));
		disconnect(NULL);
	}
}

/* SIGTERM or SIGINT came: leave, within CLOSETIME if there is a stream. */
static void
quit(void)
{
	if (state == OPENING || state == ONLINE) {
		hangup("signal");
	} else if (state != CLOSING) {
		say("stopping: signal");
		exit(0);
	}
}

/* SIGUSR1 came: log what was counted since the start, and who is online. */
static void
report(void)
{
	char refused[512] = "";
	size_t i, n = 0;

	reporting = 0;
	for (i = 0; i < LEN(refusals); i++)
		n += (size_t)snprintf(refused + n, sizeof(refused) - n, ", %lu %s",
		                      refusals[i].n, refusals[i].condition);
	say("counted: %lu requests, %lu untracked, %lu answers, %lu late, %lu messages"
	    "%s, %lu dropped, %lu connections, %d online, %d open, %llu bytes in, "
	    "%llu bytes out", nrequests, nuntracked, nanswers, nlate, nmessages,
	    refused, ndropped, nconnected, nresources, nopen, bytesin, bytesout);
	for (i = 0; i < (size_t)nresources; i++)
		say("resource: %s/%s: %d open", target, resources[i], busy[i]);
}

/* The socket is ready for `events', or broken. */
static void
ready(int events)
{
	if (state == CONNECTING) {
		connected();
		return;
	}
	if (events & POLLOUT)
		flush();
	if (held && out.len == 0)
		process();
	if (!held && hasroom() && ((events & ~POLLOUT) || unread()))
		receive();
}

static void
run(void)
{
	struct pollfd p[2];
	long long next;
	int more;
	char c;

	p[0].fd = wake[0];
	p[0].events = POLLIN;
	for (;;) {
		p[1].fd = fd;
		p[1].events = 0;
		more = !held && hasroom();
		if (state == CONNECTING || unsent() || (!npins && out.len > 0))
			p[1].events |= POLLOUT;
		if (state != CONNECTING && more)
			p[1].events |= POLLIN;
		next = deadline;
		if (state == ONLINE)
			next = MIN(next, MIN(MIN(asktime, sweeptime), expiry()));
		if (more && unread())
			next = now;
		next = MIN(MAX(next - now, 0), INT_MAX);
		if (poll(p, 2, (int)next) < 0)
			p[0].revents = p[1].revents = 0;
		now = milliseconds();
		while (p[0].revents && read(wake[0], &c, 1) == 1)
			;
		if (reporting)
			report();
		if (quitting)
			quit();
		if (fd >= 0 && (p[1].revents || unread()))
			ready(p[1].revents);
		if (now >= deadline)
			overdue();
		do {
			more = state == ONLINE && chores();
			flush();
		} while (more && out.len == 0);
	}
}

/* ---- main ---- */

static void
onsignal(int sig)
{
	int saved = errno;

	if (sig == SIGUSR1)
		reporting = 1;
	else
		quitting = 1;
	if (quitting && resolving)
		_exit(0);
	if (write(wake[1], "", 1) < 0)
		errno = saved; /* full: the loop will wake up all the same */
}

/* Signals wake the loop through a pipe, so that none is missed. */
static void
setsignals(void)
{
	static const int caught[] = { SIGTERM, SIGINT, SIGUSR1 };
	struct sigaction sa = { .sa_handler = onsignal };
	size_t i;

	if (pipe(wake) < 0)
		die("pipe", strerror(errno));
	for (i = 0; i < 2; i++)
		if (fcntl(wake[i], F_SETFL, O_NONBLOCK) < 0 ||
		    fcntl(wake[i], F_SETFD, FD_CLOEXEC) < 0)
			die("pipe", strerror(errno));
	for (i = 0; i < LEN(caught); i++)
		sigaction(caught[i], &sa, NULL);
	signal(SIGPIPE, SIG_IGN);
}

/* Why s can be neither a domain nor a bare JID, or NULL. Servers write both in
 * lower case, so nothing else would ever compare equal. */
static const char *
unfit(const char *s)
{
	if (s[strcspn(s, "/ \177")])
		return "has a slash, a space or a control character in it";
	if (s[strcspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ")])
		return "is not in lower case, as servers write it";
	return isutf8(s) ? NULL : "is not UTF-8 without control characters";
}

/* Refuse a configuration that cannot work. */
static void
checkconfig(void)
{
	size_t node = strcspn(target, "@"), i;
	const char *at = target + node + (target[node] == '@');
	const struct {
		int bad;
		const char *what, *why;
	} checks[] = {
		{ unfit(domain) != NULL, "domain", unfit(domain) },
		{ unfit(target) != NULL, "target", unfit(target) },
		{ !*domain || strchr(domain, '@') || strlen(domain) > PARTMAX,
		  "domain", "is not the domain of a component" },
		{ !node || node > PARTMAX || !*at || strchr(at, '@') ||
		  !target[node] || strlen(at) > PARTMAX,
		  "target", "is not a bare JID, account@domain" },
		{ same(at, domain), "target", "is at our own domain" },
		{ !*secret, "secret", "is empty" },
		{ !*host, "host", "is empty" },
		{ !*port, "port", "is empty" },
		{ !readpins(), "tlspin", "is not SHA-256 fingerprints, eight at most" },
		{ !isutf8(prefix) || strlen(prefix) > PARTMAX,
		  "prefix", "is not the start of any resource" },
		{ !backoffmax || !patience || !askmin || askmax < askmin || !refresh,
		  "times", "are 0, which only keepalive and answertime may be" },
		{ choice < RANDOM || choice > LEASTBUSY,
		  "choice", "is not RANDOM, STICKY or LEASTBUSY" }
	};

	for (i = 0; i < LEN(checks); i++)
		if (checks[i].bad)
			die(checks[i].what, checks[i].why);
}

/* Give up what is not needed, and take what others must not have: descriptors
 * 0 to 2 would be a socket if they were closed, a core would hold the secret. */
static void
shield(void)
{
	struct rlimit none = { 0, 0 };
	int n;

	do
		n = open("/dev/null", O_RDWR);
	while (n >= 0 && n < 3);
	if (n < 0 || close(n) < 0 || setrlimit(RLIMIT_CORE, &none) < 0)
		die("start", strerror(errno));
#ifdef __OpenBSD__
	if (pledge("stdio inet dns", NULL) < 0)
		die("pledge", strerror(errno));
#endif
}

int
main(int argc, char *argv[])
{
	br_prng_seeder seeder = br_prng_seeder_system(NULL);
	br_hmac_drbg_context rng;

	if (argc == 2 && same(argv[1], "-v")) {
		puts("client_proxy-" VERSION);
		return 0;
	}
	if (argc != 1) {
		fputs("usage: client_proxy [-v]\n", stderr);
		return 1;
	}
	checkconfig();
	br_hmac_drbg_init(&rng, &br_sha256_vtable, NULL, 0);
	if (!seeder || !seeder(&rng.vtable))
		die("random numbers", "the system has no seed for them");
	br_hmac_drbg_generate(&rng, &salt, sizeof(salt));
	do
		br_hmac_drbg_generate(&rng, &seed, sizeof(seed));
	while (!seed);
	shield();
	setsignals();
	now = milliseconds();
	run();
}

