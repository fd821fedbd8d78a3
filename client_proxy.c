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

#include "config.h"

#define LEN(x)        (sizeof(x) / sizeof((x)[0]))
#define MIN(a, b)     ((a) < (b) ? (a) : (b))
#define MAX(a, b)     ((a) > (b) ? (a) : (b))

#define NS_COMPONENT  "jabber:component:accept"
#define NS_CLIENT     "jabber:client"
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

/* An element or a text. Offsets are into text[]; names end with a NUL. */
struct node {
	int up;                     /* its parent; -1: it is the stanza itself */
	int str, len;               /* its name, or the text */
	int attr, nattr;            /* first attribute and how many; nattr -1: a text */
};

struct attr {
	int name, value;            /* both end with a NUL */
};

enum { NOTHING, OPENED, ELEMENT, CLOSED };             /* event of the parser */
enum { WAITING, CONNECTING, OPENING, ONLINE, CLOSING }; /* state of the connection */

/* Why requests are refused, how it is said (RFC 6120 8.3.3), how often. */
enum { NOBODY, UNKNOWN, LONGADDRESS, LARGE };
static struct refusal {
	const char *type, *condition;
	unsigned long n;
} refusals[] = {
	[NOBODY]      = { "cancel", "service-unavailable", 0 },
	[UNKNOWN]     = { "cancel", "feature-not-implemented", 0 },
	[LONGADDRESS] = { "modify", "not-acceptable", 0 },
	[LARGE]       = { "modify", "policy-violation", 0 },
};
static unsigned long nrequests, nanswers, ndropped, nconnected;
static unsigned long long bytesin, bytesout;

/* clock and choice */
static long long now;           /* ms, monotonic, taken once a turn of the loop */
static uint64_t seed;           /* of the next choice, never 0 */

/* resources of the target that are online */
static char resources[MAXRESOURCES][PARTMAX + 1];
static int nresources, toomany;

/* the target's presence subscription */
static int subscribed;
static long long asktime, askpause;

/* the out buffer: out[outpos] to out[outlen - 1] wait to be written */
static char out[OUTSIZE];
static size_t outpos, outlen, outmark;
static size_t largest;          /* bytes of the largest tag of a stanza */
static int outfull;

/* the stanza that is being read, and its own attributes */
static char text[MAXSTANZA];
static struct node nodes[MAXNODES];
static struct attr attrs[MAXATTRS];
static int ntext, nnodes, nattrs, current, toolarge, prefixed;
static const char *kind, *from, *to, *type, *id;

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
static int authenticated;

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

/* ---- JIDs ---- */

/* 1 if jid is [node@]domain[/resource] with our domain, and fit to be part of
 * an address that we write; servers deliver others' stanzas to us as well. */
static int
isours(const char *jid)
{
	size_t bare = strcspn(jid, "/"), node = strcspn(jid, "@/");
	size_t len = strlen(domain);

	if (jid[node] == '@') {
		if (node == 0 || node++ > PARTMAX)
			return 0;
	} else {
		node = 0;
	}
	return bare - node == len && !memcmp(jid + node, domain, len) &&
	       strcmp(jid + bare, "/") != 0;
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
		more = c < 0x80 ? 0 : c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;
		if (c < ' ' || (c >= 0x80 && c < 0xc0) || c > 0xf7)
			return 0;
		c &= more ? 0x3fUL >> more : 0x7f;
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
		if (!strcmp(resources[i], name))
			return i;
	return -1;
}

static void
addresource(const char *name)
{
	size_t len = strlen(name);

	if (strncmp(name, prefix, strlen(prefix)) || findresource(name) >= 0)
		return;
	if (len == 0 || len > PARTMAX) {
		say("ignored: %s/%s: not a legal resource", target, name);
	} else if (nresources < MAXRESOURCES) {
		memcpy(resources[nresources++], name, len + 1);
		say("joined: %s/%s: %d online", target, name, nresources);
	} else if (!toomany) {
		say("ignored: %s/%s and any more: %d online is the limit",
		    target, name, nresources);
		toomany = 1;
	}
}

static void
removeresource(const char *name)
{
	int i = findresource(name);

	if (i < 0)
		return;
	nresources--;
	if (i < nresources)
		memcpy(resources[i], resources[nresources], sizeof(resources[i]));
	toomany = 0;
	say("left: %s/%s: %d online", target, name, nresources);
}

static void
clearresources(void)
{
	if (nresources > 0)
		say("left: %s, all of its resources: 0 online", target);
	nresources = toomany = 0;
}

/* ---- out buffer and serialising ---- */

/* 1 if whatever one more stanza causes fits into the out buffer. */
static int
hasroom(void)
{
	return OUTSIZE - outlen >= MAXSTANZA + RESERVE;
}

/* A stanza goes out whole or not at all: what is put after begin stays only if
 * commit returns 1. It returns 0 if there was no room or the stanza is larger
 * than servers take. */
static void
begin(void)
{
	outmark = outlen;
	outfull = 0;
}

static int
commit(void)
{
	if (!outfull && outlen - outmark <= MAXSTANZA)
		return 1;
	outlen = outmark;
	return 0;
}

static void
put(const char *s, size_t n)
{
	if (n > OUTSIZE - outlen) {
		outfull = 1;
		return;
	}
	memcpy(out + outlen, s, n);
	outlen += n;
}

static void
putstr(const char *s)
{
	put(s, strlen(s));
}

/* Put s[n], the value of an attribute in these quotes or, if quote is 0, a text.
 * Only what must be is escaped (XML 1.0 2.4, 3.3.3): servers count bytes as
 * written, and what its sender may send has to fit. */
static void
putescaped(const char *s, size_t n, char quote)
{
	static const char *const refs[UCHAR_MAX + 1] = {
		['&'] = "&amp;", ['<'] = "&lt;", ['>'] = "&gt;", ['\r'] = "&#13;",
		['\n'] = "&#10;", ['\t'] = "&#9;", ['\''] = "&apos;", ['"'] = "&quot;"
	};
	const char *ref;
	size_t i, run = 0;

	for (i = 0; i < n; i++) {
		if (!(ref = refs[(unsigned char)s[i]]))
			continue;
		if (quote ? s[i] == '>' || (strchr("'\"", s[i]) && s[i] != quote) :
		    s[i] == '>' ? i < 2 || memcmp(s + i - 2, "]]", 2) :
		    strchr("\n\t'\"", s[i]) != NULL)
			continue;
		put(s + run, i - run);
		putstr(ref);
		run = i + 1;
	}
	put(s + run, n - run);
}

/* Put an attribute, if it has a value, in the quotes that need less escapes. */
static void
putattr(const char *name, const char *value)
{
	const char *s;
	char quote = '\'';
	long more = 0;

	if (!value)
		return;
	if (strchr(value, '\''))
		for (s = value; *s; s++)
			more += (*s == '\'') - (*s == '"');
	if (more > 0)
		quote = '"';
	put(" ", 1);
	putstr(name);
	put("=", 1);
	put(&quote, 1);
	putescaped(value, strlen(value), quote);
	put(&quote, 1);
}

/* The value of an attribute of element n, or NULL. */
static const char *
attrof(int n, const char *name)
{
	int i;

	for (i = nodes[n].attr; i < nodes[n].attr + nodes[n].nattr; i++)
		if (!strcmp(text + attrs[i].name, name))
			return text + attrs[i].value;
	return NULL;
}

/* Put the tag of element n. The stanza itself gets other addresses, loses its
 * namespace, jabber:client is not understood on our stream, and declares the
 * prefixes that only the header of the server's stream has declared. */
static void
putelement(int n, const char *f, const char *t)
{
	const char *name, *value;
	size_t d, start = outlen;
	int i;

	put("<", 1);
	put(text + nodes[n].str, (size_t)nodes[n].len);
	for (i = nodes[n].attr; i < nodes[n].attr + nodes[n].nattr; i++) {
		name = text + attrs[i].name;
		value = text + attrs[i].value;
		if (n > 0 || strcmp(name, "xmlns"))
			putattr(name, value == from ? f : value == to ? t : value);
	}
	for (d = 0; n == 0 && prefixed && d < ndecls; d++)
		if (!attrof(0, decls[d].name))
			putattr(decls[d].name, decls[d].value);
	if (n + 1 < nnodes && nodes[n + 1].up == n)
		put(">", 1);
	else
		put("/>", 2);
	largest = MAX(largest, outlen - start);
}

/* Close element n if it has content, and those around it until `up' is the
 * innermost one that is open. */
static void
putends(int n, int up)
{
	for (; n != up; n = nodes[n].up) {
		if (n + 1 == nnodes || nodes[n + 1].up != n)
			continue;
		put("</", 2);
		put(text + nodes[n].str, (size_t)nodes[n].len);
		put(">", 1);
	}
}

/* Put the stanza, from f, to t. 0 if it is too large. White space follows a
 * large tag: a server whose expat defers parsing (see newparser) looks at it
 * again when twice as much has come, and all that follows waits with it. */
static int
forward(const char *f, const char *t)
{
	int i, open = -1;

	if (toolarge)
		return 0;
	begin();
	largest = 0;
	for (i = 0; i < nnodes; i++) {
		putends(open, nodes[i].up);
		open = nodes[i].up;
		if (nodes[i].nattr < 0) {
			putescaped(text + nodes[i].str, (size_t)nodes[i].len, 0);
		} else {
			putelement(i, f, t);
			open = i;
		}
	}
	putends(open, -1);
	if (!commit())
		return 0;
	if (largest > LARGETAG)
		for (; largest > 0 && outlen - outmark < MAXSTANZA; largest--)
			put(" ", 1);
	return 1;
}

/* Put the start of a small stanza of our own, without what is NULL. */
static void
puthead(const char *name, const char *t, const char *i, const char *f,
        const char *d)
{
	begin();
	put("<", 1);
	putstr(name);
	putattr("type", t);
	putattr("id", i);
	putattr("from", f);
	putattr("to", d);
}

/* Put an error (RFC 6120 8.3) about the stanza, from f, to t. */
static void
puterror(const char *f, const char *t, struct refusal *r)
{
	r->n++;
	puthead(kind, "error", id, f, t);
	putstr("><error type='");
	putstr(r->type);
	putstr("'><");
	putstr(r->condition);
	putstr(" xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></");
	putstr(kind);
	put(">", 1);
	if (commit())
		return;
	ndropped++;
	say("dropped: error %s to %s: too large", r->condition, t);
}

static void
putpresence(const char *t, const char *f, const char *d)
{
	puthead("presence", t, NULL, f, d);
	put("/>", 2);
	commit();
}

/* ---- routing ---- */

static void
drop(const char *why)
{
	ndropped++;
	say("dropped: %s %s from %s to %s: %s", kind, *type ? type : "(no type)",
	    from ? from : "(nobody)", to ? to : "(nobody)", why);
}

/* Answer the stanza with an error, from the address that was asked. */
static void
refuse(int why)
{
	puterror(to, from, refusals + why);
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
	} else {
		asktime = now + askpause;
		askpause = MIN(2 * askpause, askmax * 1000LL);
	}
}

/* The target or its server does not let us see its presence. */
static void
denied(const char *why)
{
	say("not subscribed: %s: %s", target, why);
	clearresources();
	if (subscribed) {
		subscribed = 0;
		askpause = askmin * 1000LL;
		asktime = now + askpause;
	}
}

/* The first element in element n, with this name if there is one; or 0. */
static int
child(int n, const char *name)
{
	int i;

	for (i = n + 1; i < nnodes; i++)
		if (nodes[i].up == n && nodes[i].nattr >= 0 &&
		    (!name || !strcmp(text + nodes[i].str, name)))
			return i;
	return 0;
}

/* The condition of an error, element n: the name of the first one in it. */
static const char *
condition(int n)
{
	int i = child(n, NULL);

	return i ? text + nodes[i].str : "no condition given";
}

/* Presence to self, an address of ours. */
static void
presence(const char *self)
{
	const char *name = resourceof(from);
	int asks = !strcmp(type, "subscribe"), probes = !strcmp(type, "probe");

	if (!istarget(from)) {
		if (asks || probes)
			putpresence("unsubscribed", self, from);
	} else if (asks || probes) {
		if (asks)
			putpresence("subscribed", self, from);
		putpresence(NULL, self, from);
	} else if (strcmp(to, domain)) {
		; /* only what our domain is told says who is online */
	} else if (!*type && name) {
		addresource(name);
	} else if (!strcmp(type, "unavailable") && name) {
		removeresource(name);
	} else if (!strcmp(type, "unavailable")) {
		clearresources();
	} else if (!strcmp(type, "subscribed")) {
		if (!subscribed)
			say("subscribed: %s", target);
		subscribed = 1;
		ask();
	} else if (!strcmp(type, "unsubscribed")) {
		denied("it refuses or has withdrawn the subscription");
	} else if (!strcmp(type, "error")) {
		denied(condition(child(0, "error")));
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

/* A request: hand it to a resource of the target. */
static void
request(const char *self)
{
	char src[JIDMAX + 1], dst[JIDMAX + 1], resource[PARTMAX + 1];

	if (istarget(from)) {
		refuse(UNKNOWN);
	} else if (resourceof(to) || nresources == 0) {
		refuse(NOBODY);
	} else if (!enc(resource, from)) {
		refuse(LONGADDRESS);
	} else {
		join(src, self, resource);
		join(dst, target, resources[below((unsigned long)nresources)]);
		if (forward(src, dst))
			nrequests++;
		else
			refuse(LARGE);
	}
}

/* An answer: lead it back to the requester that our address tells. One that
 * cannot pass still ends the request. */
static void
response(const char *self)
{
	char requester[PARTMAX + 1];

	if (!istarget(from) || !resourceof(from))
		drop("not from a resource of the target");
	else if (!resourceof(to) || !dec(requester, resourceof(to)))
		drop("no requester in the address");
	else if (forward(self, requester))
		nanswers++;
	else
		puterror(self, requester, refusals + LARGE);
}

/* Handle the stanza that is in the tree. */
static void
route(void)
{
	char self[BAREMAX + 1];
	size_t bare;
	const char *ns = attrof(0, "xmlns");

	if (!from || !*from || !to || !isours(to)) {
		drop("not from anybody to us");
		return;
	}
	bare = strcspn(to, "/");
	memcpy(self, to, bare);
	self[bare] = '\0';
	if (ns && strcmp(ns, NS_COMPONENT) && strcmp(ns, NS_CLIENT))
		drop("unknown namespace");
	else if (isours(from))
		; /* our own ping, or what became of it */
	else if (!strcmp(kind, "presence"))
		presence(self);
	else if (!strcmp(kind, "message") && strcmp(type, "error"))
		refuse(UNKNOWN);
	else if (!strcmp(kind, "message"))
		; /* errors never answer errors, RFC 6120 8.3.1 */
	else if (!strcmp(type, "get") || !strcmp(type, "set"))
		request(self);
	else if (!strcmp(type, "result") || !strcmp(type, "error"))
		response(self);
	else
		drop("unknown type");
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

/* Keep a string. Returns where, or -1 if the stanza is too large. */
static int
keep(const char *s)
{
	size_t n = strlen(s) + 1;

	if (n > (size_t)(MAXSTANZA - ntext)) {
		toolarge = 1;
		return -1;
	}
	memcpy(text + ntext, s, n);
	ntext += (int)n;
	return ntext - (int)n;
}

/* 1 if a name has a prefix that the header of the server's stream declares. */
static int
isdeclared(const char *name)
{
	size_t d, len = strcspn(name, ":");

	for (d = 0; d < ndecls; d++)
		if (name[len] && !strncmp(decls[d].name + 6, name, len) &&
		    !decls[d].name[6 + len])
			return 1;
	return 0;
}

/* Add an element to the tree, as the innermost one that is open. An attribute
 * that does not fit is left out: whom to answer may still come after it. */
static void
addelement(const char *name, const char **atts)
{
	struct node *n = nodes + nnodes;
	struct attr *a;

	if (nnodes == MAXNODES || (n->str = keep(name)) < 0) {
		toolarge = 1;
		return;
	}
	n->up = current;
	n->len = (int)strlen(name);
	n->attr = nattrs;
	n->nattr = 0;
	current = nnodes++;
	prefixed |= isdeclared(name);
	for (; *atts; atts += 2) {
		a = attrs + nattrs;
		if (nattrs == MAXATTRS || (a->name = keep(atts[0])) < 0 ||
		    (a->value = keep(atts[1])) < 0) {
			toolarge = 1;
			continue;
		}
		prefixed |= isdeclared(atts[0]);
		nattrs++;
		n->nattr++;
	}
}

static int
isstanza(void)
{
	return !strcmp(kind, "iq") || !strcmp(kind, "presence") ||
	       !strcmp(kind, "message");
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
	if (depth++ > 1) {
		if (!toolarge)
			addelement(name, atts);
		return;
	}
	ntext = nnodes = nattrs = toolarge = prefixed = 0;
	nodes[0].nattr = 0;
	current = -1;
	addelement(name, atts);
	kind = nnodes ? text + nodes[0].str : "";
	from = attrof(0, "from");
	to = attrof(0, "to");
	if (!(type = attrof(0, "type")))
		type = "";
	id = attrof(0, "id");
	if (depth == 1)
		stop(OPENED);
}

static void XMLCALL
endelement(void *data, const char *name)
{
	(void)data;
	(void)name;
	if (--depth > 1) {
		if (!toolarge)
			current = nodes[current].up;
	} else if (depth == 0) {
		stop(CLOSED);
	} else if (!authenticated || !isstanza()) {
		stop(ELEMENT);
	} else {
		route();
		if (!hasroom() || isworn())
			stop(NOTHING);
	}
}

/* Text between stanzas is white space that keeps the connection alive. */
static void XMLCALL
characters(void *data, const char *s, int n)
{
	struct node *last;

	(void)data;
	if (depth < 2 || toolarge)
		return;
	if (n > MAXSTANZA - ntext || nnodes == MAXNODES) {
		toolarge = 1;
		return;
	}
	last = nodes + nnodes - 1;
	if (last->nattr >= 0 || last->up != current) {
		last = nodes + nnodes++;
		last->up = current;
		last->str = ntext;
		last->len = 0;
		last->nattr = -1;
	}
	memcpy(text + ntext, s, (size_t)n);
	ntext += n;
	last->len += n;
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
	outpos = outlen = outmark = inlen = 0;
	depth = event = held = authenticated = subscribed = 0;
	fault = NULL;
	putstr("<?xml version='1.0'?><stream:stream xmlns='" NS_COMPONENT
	       "' xmlns:stream='" NS_STREAM "'");
	putattr("to", domain);
	put(">", 1);
	return newparser();
}

static void
closestream(void)
{
	if (fault) {
		putstr("<stream:error><");
		putstr(fault);
		putstr(" xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>");
	}
	putstr("</stream:stream>");
}

/* Remember the prefixes that the header of the server's stream, in the tree,
 * declares; our own declares `stream' too. 0 if they are too many or too long. */
static int
savedecls(void)
{
	const char *name, *value;
	int i;

	for (ndecls = 0, i = 0; i < nattrs; i++) {
		name = text + attrs[i].name;
		value = text + attrs[i].value;
		if (strncmp(name, "xmlns:", 6) || !strcmp(name, "xmlns:stream"))
			continue;
		if (ndecls == LEN(decls) || strlen(name) >= sizeof(decls[0].name) ||
		    strlen(value) >= sizeof(decls[0].value))
			return 0;
		strcpy(decls[ndecls].name, name);
		strcpy(decls[ndecls++].value, value);
	}
	return 1;
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
	putstr("<handshake>");
	putstr(hex);
	putstr("</handshake>");
}

/* The server's stream header is in the tree. Returns NULL or what is wrong. */
static const char *
opened(void)
{
	const char *stream = attrof(0, "xmlns:stream"), *ns = attrof(0, "xmlns");

	if (strcmp(kind, "stream:stream") || !id)
		fault = "bad-format";
	else if (!stream || strcmp(stream, NS_STREAM) ||
	         !ns || strcmp(ns, NS_COMPONENT))
		fault = "invalid-namespace";
	else if (toolarge || !savedecls())
		fault = "policy-violation";
	if (fault)
		return "this is no component port: its stream header is not one";
	handshake();
	return NULL;
}

/* A stream error (RFC 6120 4.9) is in the tree. */
static const char *
streamerror(void)
{
	static char why[1024];
	int i = child(0, "text") + 1;

	if (i == 1 || i == nnodes || nodes[i].nattr >= 0)
		return condition(0);
	snprintf(why, sizeof(why), "%s: %.*s", condition(0), nodes[i].len,
	         text + nodes[i].str);
	return why;
}

/* An element of the stream that is not a stanza, or one too early, is in the
 * tree. Returns NULL, or why the stream has to end. */
static const char *
element(void)
{
	if (!strcmp(kind, "stream:error"))
		return streamerror();
	if (authenticated) {
		drop("not a stanza");
	} else if (isstanza()) {
		fault = "bad-format";
		return "the server sends stanzas before the handshake is done";
	} else if (!strcmp(kind, "handshake")) {
		authenticated = 1;
		nconnected++;
		say("online: %s at %s port %s", domain, host, port);
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
	clearresources();
	close(fd);
	fd = -1;
	freeparser();
	outpos = outlen = 0;
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
	clearresources();
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
	puthead("iq", "get", "ping", domain, domain);
	putstr("><ping xmlns='urn:xmpp:ping'/></iq>");
	commit();
	alive();
	pinged = 1;
}

static void
flush(void)
{
	ssize_t n;

	if (outpos == outlen)
		return;
	n = write(fd, out + outpos, outlen - outpos);
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
		return;
	if (n < 0)
		outpos = outlen; /* reading will tell why */
	else
		outpos += (size_t)n;
	bytesout += n > 0 ? (unsigned long long)n : 0;
	if (held && state == ONLINE)
		alive();
	if (outpos < outlen)
		return;
	outpos = outlen = 0;
	if (state == CLOSING)
		shutdown(fd, SHUT_WR);
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
	} while (held && outlen == 0);
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
	ssize_t n = read(fd, in + inlen, sizeof(in) - inlen);

	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
		return;
	if (n <= 0) {
		disconnect(n < 0 ? strerror(errno) : "the server has closed the connection");
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
	if (!openstream())
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
	say("counted: %lu requests, %lu answers%s, %lu dropped, %lu connections, "
	    "%d online, %llu bytes in, %llu bytes out", nrequests, nanswers,
	    refused, ndropped, nconnected, nresources, bytesin, bytesout);
	for (i = 0; i < (size_t)nresources; i++)
		say("resource: %s/%s", target, resources[i]);
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
	if (held && outlen == 0)
		process();
	if (!held && (events & ~POLLOUT))
		receive();
}

static void
run(void)
{
	struct pollfd p[2];
	long long next;
	char c;

	p[0].fd = wake[0];
	p[0].events = POLLIN;
	for (;;) {
		p[1].fd = fd;
		p[1].events = 0;
		if (state == CONNECTING || outlen > 0)
			p[1].events |= POLLOUT;
		if (state != CONNECTING && !held)
			p[1].events |= POLLIN;
		next = state == ONLINE ? MIN(deadline, asktime) : deadline;
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
		if (fd >= 0 && p[1].revents)
			ready(p[1].revents);
		if (now >= deadline)
			overdue();
		if (state == ONLINE && now >= asktime)
			ask();
		flush();
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
		{ !strcmp(at, domain), "target", "is at our own domain" },
		{ !*secret, "secret", "is empty" },
		{ !*host, "host", "is empty" },
		{ !*port, "port", "is empty" },
		{ !isutf8(prefix) || strlen(prefix) > PARTMAX,
		  "prefix", "is not the start of any resource" },
		{ !backoffmax || !patience || !askmin || askmax < askmin || !refresh,
		  "times", "are 0, which only keepalive may be" }
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

	if (argc == 2 && !strcmp(argv[1], "-v")) {
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
	do
		br_hmac_drbg_generate(&rng, &seed, sizeof(seed));
	while (!seed);
	shield();
	setsignals();
	now = milliseconds();
	run();
}

