/* See LICENSE file for copyright and license details. */

/* who we are, whom we stand for, where the server is */
static const char domain[] = "proxy.localhost";   /* our address: the component's domain */
static const char secret[] = "secret";            /* shared with the server */
static const char target[] = "service@localhost"; /* bare JID whose resources answer */
static const char host[]   = "127.0.0.1";         /* server: name or address, IPv4 or IPv6 */
static const char port[]   = "5347";              /* its component port */
static const char tlspin[] = "";                  /* fingerprints of its certificate, for TLS; "": no TLS */
static const char prefix[] = "";                  /* use only resources that start with this */
static const int  choice   = RANDOM;              /* which of them: RANDOM, STICKY, LEASTBUSY or STANDBY */
static const int  relay    = 0;                   /* 1: messages and the client's own requests, too */

/* times, all in seconds */
static const unsigned int keepalive  = 60;        /* of silence before the route is checked */
static const unsigned int backoffmax = 60;        /* longest pause before a server that is there but refuses is tried again */
static const unsigned int patience   = 10;        /* to accept a connection, for the handshake, for a probe's answers */
static const unsigned int askmin     = 60;        /* until the target is asked again for its presence, doubled each time */
static const unsigned int askmax     = 3600;      /* the longest such pause */
static const unsigned int refresh    = 300;       /* between two probes for presence that was missed, more than patience */
static const unsigned int answertime = 300;       /* for a resource to answer, then the requester gets an error */
static const unsigned int stall      = 10;        /* of silence with a request until a resource is pinged, and as many until others are used; 0: never */
static const unsigned int sticktime  = 1800;      /* with STICKY, or relay: a requester served so lately stays with its resource */

/* how often a get is handed to another resource, as its own has left or stalls */
static const unsigned int retry      = 1;

/* sizes: memory is fixed, this is what happens at each limit */
enum {
	MAXRESOURCES = 1024,    /* resources online at once: more are ignored, said once */
	MAXREQUESTS  = 4096,    /* requests without an answer yet: more are refused; as many
	                         * that had an error are remembered, for a late answer */
	REQUESTSIZE  = 1024,    /* bytes of a request's addresses and id: if they are
	                         * longer, there is no error should no answer come; and
	                         * of a get's content: if it is longer, no retry */
	MAXSTANZA    = 524288,  /* bytes of a stanza, written out: a larger one is
	                         * refused, Prosody would cut us off */
	OUTSIZE      = 1048576, /* bytes waiting to be written: when no further stanza
	                         * fits we stop reading until the server has read them */
	INSIZE       = 131072,  /* bytes read at once */
	PARSERSOFT   = 1048576, /* bytes expat may keep: above, the next stanza
	                         * gets a fresh parser */
	PARSERHARD   = 7340032  /* bytes expat may use within one stanza: above, the
	                         * stream is closed and opened again */
};
