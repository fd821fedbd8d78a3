/* See LICENSE file for copyright and license details. */

/* who we are, whom we stand for, where the server is */
static const char domain[] = "proxy.localhost";    /* our address: the component's domain */
static const char secret[] = "secret";             /* shared with the server */
static const char target[] = "service@localhost";  /* bare JID of the workers */
static const char host[]   = "127.0.0.1";          /* the server's name or address, IPv4 or IPv6 */
static const char port[]   = "5347";               /* its port for components */
static const char tlspin[] = "";                   /* fingerprints of its certificate; "": no TLS */
static const char prefix[] = "";                   /* only resources that start with this are workers */
static const int  choice   = RANDOM;               /* of a worker: RANDOM, STICKY, LEASTBUSY or STANDBY */
static const int  relay    = 0;                    /* 1: also messages and requests from workers */

/* times, in seconds */
static const unsigned int keepalive  = 60;        /* silence before the route is checked; 0: never */
static const unsigned int backoffmax = 60;        /* longest pause before a server that refuses is tried again */
static const unsigned int patience   = 10;        /* to accept a connection, to complete the handshake, to answer a probe, to read what we write */
static const unsigned int askmin     = 60;        /* first pause before the subscription is requested again; also the least between probes that errors of workers cause */
static const unsigned int askmax     = 3600;      /* longest pause between requests for the subscription: it doubles each time */
static const unsigned int refresh    = 300;       /* from the end of a probe for missed presence to the next; more than patience */
static const unsigned int answertime = 300;       /* to answer a request, then the requester gets an error; 0: for ever */
static const unsigned int stall      = 10;        /* silence before a worker with a request is pinged; twice that: stalled; 0: never */
static const unsigned int sticktime  = 1800;      /* with STICKY or relay: how long a requester stays when workers join */

/* how often a get is handed to another worker when its own leaves or is stalled */
static const unsigned int retry      = 1;

/* sizes: memory is fixed, and this is what happens at each limit */
enum {
	MAXRESOURCES = 1024,    /* workers online: more are ignored, logged once */
	MAXREQUESTS  = 4096,    /* open requests: more are refused; as many that were
	                         * answered are remembered, to drop second answers */
	REQUESTSIZE  = 1024,    /* bytes kept of a request: with longer addresses and id
	                         * it gets no error if no answer comes, with longer
	                         * content it is not handed to another worker */
	MAXSTANZA    = 524288,  /* bytes of a stanza as written: a larger one is
	                         * refused, since Prosody would disconnect us */
	OUTSIZE      = 1048576, /* bytes waiting to be written: while another stanza
	                         * might not fit, we do not read, for `patience' */
	INSIZE       = 131072,  /* bytes read at once */
	PARSERSOFT   = 1048576, /* bytes expat may keep: above, the next stanza
	                         * gets a fresh parser */
	PARSERHARD   = 7340032  /* bytes expat may hold at all: above, the stream is
	                         * closed and opened again */
};
