#!/bin/sh
# client_proxy's tests and its demo. See LICENSE file for copyright and license.
#
#	./test.sh            all tests, then all of them once more with sanitizers
#	./test.sh NAME...    these tests only, as the list below names them
#	./test.sh list       the names
#	./test.sh fuzz [SECONDS]
#	./test.sh soak [SECONDS]
#	./test.sh bench      what it costs, next to parsing alone
#	./test.sh portable [VARIANT [NAME...]]
#	                     other compilers, flags, C libraries and processors
#	./test.sh demo       the exchange of the man page, on a real server
#
# Servers and clients run on loopback, in a throw-away directory, and never as
# root: started as root, everything runs as `nobody'.

# shellcheck disable=SC2154 # dir, c2s, cport and tport are set by place
set -u
LC_ALL=C
PATH=$PATH:/usr/sbin:/sbin
export LC_ALL PATH
here=$(cd "$(dirname "$0")" && pwd)

if [ -z "${TESTDIR-}" ]; then
	TESTDIR=$(mktemp -d "${TMPDIR:-/tmp}/client_proxy.XXXXXX") || exit 1
	export TESTDIR
	trap 'rm -rf "$TESTDIR"' EXIT
	trap 'exit 1' HUP INT TERM
	mkdir "$TESTDIR/src"
	for f in Makefile client_proxy.c config.def.h client_proxy.1 test.sh \
	    LICENSE README; do
		cp "$here/$f" "$TESTDIR/src" || exit 1
	done
	user=
	if [ "$(id -u)" = 0 ]; then
		chown -R nobody "$TESTDIR"
		user="setpriv --reuid=nobody --regid=nogroup --clear-groups"
	fi
	cd "$TESTDIR/src" || exit 1
	HOME=$TESTDIR $user sh ./test.sh "$@"
	exit
fi

# ---- helpers: processes ----

# Wait until a command succeeds, for half a minute at most.
await() {
	tries=600
	until "$@" >/dev/null 2>&1; do
		tries=$((tries - 1))
		[ $tries -gt 0 ] || { echo "waited in vain for: $*"; return 1; }
		sleep 0.05
	done
}

# Skip the test without a command, which is in this Debian package.
need() {
	command -v "$1" >/dev/null || {
		echo "needs the package $2"
		exit 77
	}
}

# Run a command in the background until the test ends; its pid is $pid.
background() {
	"$@" &
	pid=$!
	echo $pid >>"$dir/pids"
}

gone() { ! kill -0 "$1" 2>/dev/null; }

# End a process, with a signal if it is not to be TERM.
end() {
	kill "-${2-TERM}" "$1"
	await gone "$1"
}

# End everything that the test started and has not ended itself.
cleanup() {
	set +e
	[ -f "$dir/pids" ] || return
	while read -r p; do
		kill -CONT "$p"
		kill "$p"
	done <"$dir/pids" 2>/dev/null
	while read -r p; do
		n=100
		while kill -0 "$p" && [ $n -gt 0 ]; do
			sleep 0.02
			n=$((n - 1))
		done
		kill -9 "$p"
	done <"$dir/pids" 2>/dev/null
	rm -f "$dir/pids"
}

listening() { socat -u OPEN:/dev/null "TCP:127.0.0.1:$1,connect-timeout=1"; }

freeport() {
	port=
	while [ -z "$port" ] || listening "$port" 2>/dev/null; do
		port=$(($(od -An -N2 -tu2 /dev/urandom) % 12000 + 20000))
	done
	echo "$port"
}

# A fresh directory of this name and ports of its own, for what runs next.
place() {
	dir=$TESTDIR/$1
	rm -rf "$dir"
	mkdir "$dir"
	c2s=$(freeport)
	cport=$(freeport)
	tport=$(freeport)
	export dir c2s cport tport
}

# From here on, stop at the first failure and end whatever was started.
guard() {
	set -e
	trap cleanup EXIT
	trap 'exit 1' HUP INT TERM
}

# ---- helpers: what is tested ----

# Build client_proxy with settings NAME=VALUE in config.h; the binary is $bin.
configure() {
	config=$dir/config.h
	cp config.def.h "$config"
	[ -z "${TLS-}" ] || certificate server
	for s in port="\"$([ -n "${TLS-}" ] && echo "$tport" || echo "$cport")\"" ${TLS:+"tlspin=\"$pin\""} "$@"; do
		sed "s|^\\(static const .*[ *]${s%%=*} *= \\)[^;]*;|\\1${s#*=};|
		     s|^\\(	${s%%=*} *= \\)[0-9]*|\\1${s#*=}|" \
		    "$config" >"$config.new"
		mv "$config.new" "$config"
	done
	build=$TESTDIR/build.$(cat "$config" - <<-E | cksum | tr ' ' .
		${CC-} ${CFLAGS-} ${CPPFLAGS-} ${LDFLAGS-} ${LIBS-} ${MAKE-}
	E
	)
	bin=$build/client_proxy
	[ -x "$bin" ] && return
	mkdir -p "$build"
	cp Makefile client_proxy.c config.def.h "$config" "$build"
	(cd "$build" && ${MAKE-make} ${CFLAGS+"CFLAGS=$CFLAGS"} ${LIBS+"LIBS=$LIBS"}) >"$build/log" 2>&1 || { cat "$build/log"; return 1; }
}

# A key and its certificate, of this kind, in $dir/NAME.pem: its $pin.
certificate() {
	kind="ec -pkeyopt ec_paramgen_curve:P-256"
	[ -z "${2-}" ] || kind=$2
	# shellcheck disable=SC2086 # words
	[ -f "$dir/$1.pem" ] || {
		openssl req -x509 -newkey $kind -nodes -keyout "$dir/$1.key" \
		    -out "$dir/$1.crt" -days 9 -subj /CN=localhost 2>"$dir/openssl.log"
		cat "$dir/$1.key" "$dir/$1.crt" >"$dir/$1.pem"
	}
	pin=$(openssl x509 -noout -fingerprint -sha256 -in "$dir/$1.pem")
	pin=${pin#*=}
}

# TLS at $tport with this certificate, before the server at $cport.
front() {
	background socat "OPENSSL-LISTEN:$tport,bind=127.0.0.1,reuseaddr,fork,verify=0,cert=$dir/$1.pem,nodelay${2-}" \
	    "TCP:127.0.0.1:$cport,nodelay" 2>>"$dir/front.log"
	frontpid=$pid
	await listening_only "$tport"
}

# Run it, configured so; its log is $log. With TLS set it reaches the server so:
# `own' is the server's own port for it, else there is one before the server.
proxy() {
	configure "$@" || return
	if [ "${TLS-own}" != own ] && ! [ -f "$dir/front.log" ]; then
		front server
	fi
	log=$dir/proxy.log
	# shellcheck disable=SC2086 # a command and its options, or nothing
	background ${WRAPPER-} "$bin" 2>>"$log"
	proxypid=$pid
}

# Run it with options, to an end that it comes to by itself, with status $rc.
brief() {
	rc=0
	# shellcheck disable=SC2086 # a command and its options, or nothing
	${WRAPPER-} "$bin" "$@" 2>"$dir/err" >"$dir/out" || rc=$?
}

# Stop it: within a second, with status 0.
stop() {
	kill "$proxypid"
	n=20
	[ -z "${WRAPPER-}" ] || n=100
	until gone "$proxypid" || [ $n = 0 ]; do
		sleep 0.05
		n=$((n - 1))
	done
	[ $n -gt 0 ] || { echo "still runs after a second"; return 1; }
	wait "$proxypid" || { echo "exit status $?"; cat "$log"; return 1; }
}

logged() { await grep -q -e "$1" "$log"; }

unlogged() {
	! grep -e "$1" "$log" || { echo "logged: $1"; return 1; }
}

# ---- helpers: talking XMPP ----

# Print the stanzas of a stream on standard input, one a line. A tag ends with
# the first `>' outside of quotes.
stanzas() {
	awk 'BEGIN { RS = ">" }
	{
		if (!intag) {
			buf = buf $0 ">"
			if (!(i = index($0, "<")))
				next
			tag = substr($0, i)
		} else {
			buf = buf $0 ">"
			tag = tag ">" $0
		}
		bare = tag
		gsub(/"[^"]*"|'\''[^'\'']*'\''/, "", bare)
		intag = bare ~ /["'\'']/
		if (intag)
			next
		if (tag ~ /^<\?/) {
			buf = ""
			next
		}
		if (tag ~ /^<stream:stream/)
			depth = 1
		else if (tag ~ /^<\//)
			depth--
		else if (tag !~ /\/$/)
			depth++
		if (depth > 1)
			next
		gsub(/\n/, " ", buf)
		sub(/^ */, "", buf)
		print buf
		buf = ""
	}'
}

# 1: a peer, others: patterns. Find the first stanza that it got, was not heard
# yet, and matches all of them: $heard.
find_stanza() {
	p=$dir/$1
	shift
	heard=$(stanzas <"$p.out" | awk '
	BEGIN {
		for (i = 2; i < ARGC; i++) {
			pattern[i] = ARGV[i]
			ARGV[i] = ""
		}
		while ((getline line <ARGV[1]) > 0)
			old[line] = 1
		ARGV[1] = "-"
	}
	{
		if (NR in old)
			next
		for (i in pattern)
			if ($0 !~ pattern[i])
				next
		print NR
		print
		exit
	}' "$p.heard" "$@")
	[ -n "$heard" ] || return 1
	echo "${heard%%
*}" >>"$p.heard"
	heard=${heard#*
}
}

# Wait for such a stanza.
hear() {
	tries=600
	until find_stanza "$@"; do
		tries=$((tries - 1))
		[ $tries -gt 0 ] || {
			echo "$1 did not hear: $*; but:"
			stanzas <"$dir/$1.out" | cut -c1-1000
			return 1
		}
		sleep 0.05
	done
}

# None such may come.
hush() {
	sleep 0.5
	! find_stanza "$@" || { echo "$1 heard: $heard"; return 1; }
}

# What was heard went to exactly this JID.
hear_to() {
	case $heard in
	*" to='$1'"*) ;;
	*" to=\"$1\""*) ;;
	*)
		echo "not to $1: $heard"
		return 1
		;;
	esac
}

# The named peer sends the rest of the arguments.
tell() {
	p=$dir/$1
	shift
	printf %s "$*" | timeout 20 tee "$p.in" >/dev/null
}

# A raw connection: its name, then socat's address.
connect() {
	mkfifo "$dir/$1.in"
	: >"$dir/$1.heard"
	: >"$dir/$1.out"
	background socat "FD:3!!OPEN:$dir/$1.out,append" "$2" \
	    3<>"$dir/$1.in" 2>>"$dir/socat.log"
}

# Cut a peer's connection.
cut_off() {
	end "$(cat "$dir/$1.pid")" 9
	rm -f "$dir/$1".*
}

# ---- helpers: servers and clients ----

# What config.def.h expects of the server.
hosts='VirtualHost "localhost"
Component "proxy.localhost"
	component_secret = "secret"'

# A throw-away Prosody with $hosts; everybody's password is `pw'.
prosody() {
	mkdir -p "$dir/prosody"
	mux=
	if [ "${TLS-}" = own ]; then
		certificate server
		mux=", \"net_multiplex\" }
		ssl_ports = { $tport }
		ssl_ssl = { certificate = \"$dir/server.crt\", key = \"$dir/server.key\""
	fi
	cat >"$dir/prosody.cfg.lua" <<-E
	data_path = "$dir/prosody"
	plugin_paths = { "$dir" }
	log = { { levels = { min = "debug" }, to = "file",
	    filename = "$dir/prosody.log" } }
	interfaces = { "127.0.0.1" }
	c2s_ports = { $c2s }
	component_ports = { $cport }
	modules_enabled = { "roster", "saslauth", "disco"$mux }
	modules_disabled = { "s2s", "tls", "offline" }
	authentication = "anyone"
	c2s_require_encryption = false
	allow_unencrypted_plain_auth = true
	$hosts
	E
	cat >"$dir/mod_auth_anyone.lua" <<-\E
	local provider = {};
	function provider.test_password(user, password) return password == "pw"; end
	function provider.user_exists(user) return user ~= "nobody"; end
	function provider.get_sasl_handler()
		return require "util.sasl".new(module.host, {
			plain_test = function(_, user, password)
				return provider.test_password(user, password), true;
			end
		});
	end
	module:provides("auth", provider);
	E
	background command prosody --config "$dir/prosody.cfg.lua" -F \
	    >>"$dir/prosody.out" 2>&1
	serverpids=$pid
	await listening "$c2s"
	await listening "$cport"
	[ "${TLS-}" != own ] || await listening "$tport"
}

# A throw-away ejabberd, with accounts service, user and other; or a node of this
# name, in a cluster with another.
ejabberd() {
	node=$dir/${1-ejabberd}
	port=$cport
	tls=
	if [ "${TLS-}" = own ]; then
		certificate server
		port=$tport
		tls=$(printf '\n    tls: true\n    certfile: %s' "$dir/server.pem")
	fi
	cat >"$node.yml" <<-E
	hosts: [localhost]
	certfiles: []
	auth_method: internal
	listen:
	  -
	    port: $c2s
	    ip: "127.0.0.1"
	    module: ejabberd_c2s
	    shaper: none
	    max_stanza_size: 262144
	  -
	    port: $port
	    ip: "127.0.0.1"
	    module: ejabberd_service$tls
	    access: all
	    hosts:
	      "proxy.localhost":
	        password: "secret"
	modules:
	  mod_roster: {}
	E
	lib=$(dpkg -L ejabberd | sed -n 's|/ejabberd-[0-9.]*/ebin/ejabberd.app$||p;
	    s|/ejabberd-[^/]*/ebin$||p' | head -n 1)
	export HOME="$dir" ERL_LIBS="$lib" ERL_CRASH_DUMP=/dev/null
	export EJABBERD_CONFIG_PATH="$node.yml"
	export EJABBERD_LOG_PATH="$node.log"
	# once in a while it does not come up
	for try in 1 2 3; do
		# shellcheck disable=SC2016 # not for the shell
		background erl -noinput ${1:+-name "$1@127.0.0.1" -setcookie test \
		    -kernel inet_dist_use_interface "{127,0,0,1}"} \
		    -mnesia dir "\"$node.mnesia\"" -s ejabberd -eval \
		    "${2:+ejabberd_cluster:join('$2@127.0.0.1'),}"'[ejabberd_auth:try_register(U, <<"localhost">>, <<"pw">>) ||
			U <- [<<"service">>, <<"user">>, <<"other">>]], io:format("ready~n").' >>"$node.out" 2>&1
		serverpids=$pid
		! await grep ready "$node.out" || break
		echo "try $try:"
		tail -n 20 "$node.out"
		end "$serverpids" 9 2>&1 || :
	done
	await listening "$c2s"
	await listening "$port"
}

# A throw-away jabberd2; whoever logs in has an account.
jabberd2() {
	lib=$(dpkg -L jabberd2 | sed -n 's|/authreg_pipe.so$||p')
	mkdir -p "$dir/fs"
	cat >"$dir/auth" <<-\E
	#!/bin/sh
	echo OK USER-EXISTS CHECK-PASSWORD FREE
	while read -r command _ && [ "$command" != FREE ]; do
		echo OK
	done
	E
	chmod +x "$dir/auth"
	head="<router><ip>127.0.0.1</ip><port>$cport</port><user>jabberd</user>
		<pass>secret</pass><retry><init>9</init><lost>9</lost><sleep>1</sleep>
		</retry></router><log type='file'><file>$dir/jabberd2.log</file></log>"
	cat >"$dir/router.xml" <<-E
	<router><id>router</id><log type='file'><file>$dir/router.log</file></log>
	<local><ip>127.0.0.1</ip><port>$cport</port><users>$dir/users.xml</users>
	<secret>secret</secret></local><io><max_fds>99</max_fds></io>
	<aci><acl type='all'><user>jabberd</user></acl></aci></router>
	E
	cat >"$dir/users.xml" <<-E
	<users><user><name>jabberd</name><secret>secret</secret></user></users>
	E
	cat >"$dir/sm.xml" <<-E
	<sm><id>sm</id>$head<local><id>localhost</id></local>
	<storage><path>$lib</path><driver>fs</driver><fs><path>$dir/fs</path></fs>
	</storage><modules><path>$lib</path>
	$(chain in-sess roster offline presence deliver) $(chain in-router session presence)
	$(chain pkt-sm presence) $(chain pkt-user roster presence deliver offline)
	$(chain pkt-router session disco) $(chain user-load active roster)
	$(chain user-create active) $(chain user-delete active roster offline)
	</modules><user><auto-create/></user></sm>
	E
	cat >"$dir/c2s.xml" <<-E
	<c2s><id>c2s</id>$head<local><id>localhost</id><ip>127.0.0.1</ip>
	<port>$c2s</port></local><io><max_fds>99</max_fds></io>
	<authreg><path>$lib</path><module>pipe</module><pipe><exec>$dir/auth</exec>
	</pipe><mechanisms><sasl><plain/></sasl></mechanisms></authreg></c2s>
	E
	serverpids=
	for part in router sm c2s; do
		background "jabberd2-$part" -c "$dir/$part.xml" >>"$dir/jabberd2.out" 2>&1
		serverpids="$pid $serverpids"
		[ $part != router ] || await listening "$cport"
	done
	await listening "$c2s"
	await grep -q "sm ready for sessions" "$dir/jabberd2.log"
}

chain() {
	echo "<chain id='$1'>"
	shift
	printf '<module>%s</module>' "$@"
	echo "</chain>"
}

# Log in: name of the peer, resource; user and host, if they are not these.
login() {
	connect "$1" "TCP:127.0.0.1:$c2s"
	echo "$pid" >"$dir/$1.pid"
	u=${3-$1}
	h=${4-localhost}
	open="<stream:stream to='$h' version='1.0' xmlns='jabber:client'
		xmlns:stream='http://etherx.jabber.org/streams'>"
	tell "$1" "<?xml version='1.0'?>$open"
	hear "$1" "<stream:features"
	if [ -n "$u" ]; then
		sasl="mechanism='PLAIN'>$(printf '\0%s\0pw' "$u" | openssl base64 -A)"
	else
		sasl="mechanism='ANONYMOUS'>"
	fi
	tell "$1" "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' $sasl</auth>"
	hear "$1" "<success"
	tell "$1" "<?xml version='1.0'?>$open"
	hear "$1" "<stream:features.*bind"
	tell "$1" "<iq type='set' id='bind'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>
		<resource>$2</resource></bind></iq>"
	hear "$1" "<iq.*id='bind'.*<jid>"
	jid=${heard#*<jid>}
	jid=${jid%%</jid>*}
}

# Log in as the target and come online.
service() {
	login "$1" "$1" service
	tell "$1" "<presence/>"
	hear "$1" "<presence.*from='service@localhost/$1'"
}

# The target, with these resources, has accepted the proxy and is seen by it.
services() {
	service "$1"
	hear "$1" "<presence" "type='subscribe'" "from='proxy.localhost'"
	tell "$1" "<presence type='subscribed' to='proxy.localhost'/>"
	logged "joined: service@localhost/$1: 1 online"
	shift
	for r in "$@"; do
		service "$r"
		logged "joined: service@localhost/$r:"
	done
}

# What a peer's roster says of the proxy becomes this.
roster() {
	for i in 1 2 3 4 5 6 7 8 9; do
		tell "$1" "<iq type='get' id='roster$i'><query xmlns='jabber:iq:roster'/></iq>"
		hear "$1" "<iq" "type='result'" "id='roster$i'"
		! echo "$heard" | grep -E "$2" || return 0
		sleep 0.1
	done
	echo "in the roster: $heard"
	return 1
}

# Send a request: peer, id, optional address.
ask() {
	asked="<iq type='get' id='$2' to='${3-proxy.localhost}'><query xmlns='test'/></iq>"
	tell "$1" "$asked"
}

# A resource of the target answers what it has heard last.
answer() {
	requester=$(echo "$heard" | sed "s/.* from='\\([^']*\\)'.*/\\1/")
	i=$(echo "$heard" | sed "s/.* id='\\([^']*\\)'.*/\\1/")
	answer="<iq type='result' id='$i' to='$requester'><query xmlns='test' by='$1'/></iq>"
	tell "$1" "$answer"
}

# A server of our own making, at the component port: a raw peer named srv.
# ID is what it gives as the stream's id, $decl what its header declares.
serve() {
	rm -f "$dir/srv".*
	connect srv "TCP-LISTEN:$cport,bind=127.0.0.1,reuseaddr,nodelay"
	echo "$pid" >"$dir/srv.pid"
	await listening_only "$cport"
}

# The port is bound; to connect would use up the one connection.
listening_only() {
	grep -q ":$(printf %04X "$1") 0*:0000 0A" /proc/net/tcp /proc/net/tcp6
}

sha1() { printf %s "$1" | openssl dgst -sha1 -r | cut -d' ' -f1; }

# It accepts the proxy.
welcome() {
	hear srv "<stream:stream" "to='proxy.localhost'" \
	    "xmlns='jabber:component:accept'"
	tell srv "<?xml version='1.0'?><stream:stream id='${ID-s1}'
		xmlns='jabber:component:accept' from='proxy.localhost' ${decl-}
		xmlns:stream='http://etherx.jabber.org/streams'>"
	hear srv "<handshake>$(sha1 "${ID-s1}secret")</handshake>"
	tell srv "<handshake/>"
	hear srv "<presence type='subscribe' id='[^']*' from='proxy.localhost' to='service@localhost'/>"
}

# It tells of the target's resources.
online() {
	for r in "$@"; do
		tell srv "<presence from='service@localhost/$r' to='proxy.localhost'/>"
	done
}

# A scripted server, the proxy (configured with the arguments) and resource a.
scripted() {
	serve
	proxy "$@"
	welcome
	online a
	logged "joined: service@localhost/a: 1 online"
}

# Trace what the proxy does for one request to the idle connection: $dir/turn.
one_request() {
	WRAPPER="strace -D -qq -s 999 -o $dir/trace -e trace=poll,read,recvfrom,write,sendto"
	scripted
	sleep 0.5
	deliver iq get u@h/r proxy.localhost "id='last'><query xmlns='test'/></iq"
	hear srv "id='last'"
	stop
	unset WRAPPER
	grep -B 1 -A 2 "^re.*'last'" "$dir/trace" >"$dir/turn"
}

# The server delivers a stanza: element, type, from, to, the rest of the tag.
deliver() {
	typed=
	[ -z "$2" ] || typed=" type='$2'"
	tell srv "<$1$typed from='$3' to='$4' ${5-id='1'/}>"
}

# A stanza in, the stanza out: everything but the addresses is as it was.
kept() {
	tell srv "<iq type='set' id='f'$1 from='u@h/r' to='proxy.localhost'$2"
	want="<iq type='set' id='f' from='proxy.localhost/u@h/r' to='service@localhost/a'$1${3-$2}"
	await has_written "$want" || {
		echo "not: $want"
		tail -c 1000 "$dir/srv.out"
		return 1
	}
}

has_written() {
	tail -c $((${#1} + 300)) "$dir/srv.out" | grep -qF -e "$1"
}

# Read the clients' part in C where shell is too slow:
#	peer worker PORT USER HOST RESOURCE [MS]
#	        answer each request, if MS is given one after the other, in so many
#	        milliseconds each; SIGUSR1: go offline, answering what still comes
#	peer asker PORT USER RESOURCE TO N [WINDOW]
#	        send N requests, WINDOW at once, and count what comes back until
#	        nothing has for 5 seconds
#	peer drip                               copy stdin, byte by byte
#	peer stall PORT N                       a server that sends N requests and
#	                                        does not read for seconds
#	peer deaf PORT                          a server that accepts no connection
#	peer tamper PORT TO                     pass on what comes at a port; after
#	                                        SIGUSR1, change what comes back
peer() {
	build_peer
	background "$peer" "$@"
}

build_peer() {
	peer=$TESTDIR/peer
	[ ! -x "$peer" ] || return 0
	sed -n '/^: <<.*peer.c/,/^END/p' test.sh | sed '1d;$d' >"$peer.c"
	cc -O1 -o "$peer.new" "$peer.c" -lexpat
	mv "$peer.new" "$peer"
}

: <<\END # peer.c
#define _POSIX_C_SOURCE 200809L
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <expat.h>

enum { QUEUE = 10000 };

static int fd, depth, asker, stall, ready, sent, wanted, answered, errors, twice, by[256];
static int window = 100, delay, first, last;
static char seen[1000000];      /* by id */
static struct { char id[64], from[256]; } queue[QUEUE];
static const char *host, *resource, *to;
static struct { char name[64]; int n; } conditions[16];
static volatile sig_atomic_t leaving;
static char id[4096], from[4096], type[64], name[64];
static XML_Parser parser;

static void
say(const char *fmt, ...)
{
	static char b[16384];
	va_list ap;
	int n, w, o;

	va_start(ap, fmt);
	n = vsnprintf(b, sizeof(b), fmt, ap);
	va_end(ap);
	for (o = 0; o < n; o += w)
		if ((w = write(fd, b + o, n - o)) <= 0)
			exit(1);
}

static void
copy(char *dst, size_t size, const char *src)
{
	size_t n = 0;

	for (; *src && n + 7 < size; src++)
		if (*src == '&' || *src == '\'' || *src == '<')
			n += sprintf(dst + n, "&#%d;", *src);
		else
			dst[n++] = *src;
	dst[n] = '\0';
}

static void
request(void)
{
	say("<iq type='get' id='%d' to='%s'><query xmlns='test'/></iq>", sent++, to);
}

static void
start(void *data, const char *el, const char **a)
{
	int i;

	if (depth++ == 1 && stall) {
		ready |= !strcmp(el, "handshake");
		for (i = 0; a[i] && !strcmp(el, "iq"); i += 2)
			if (!strcmp(a[i], "id") && atoi(a[i + 1]) == answered)
				answered++;
	} else if (depth == 2 && !stall) {
		*id = *from = *type = '\0';
		copy(name, sizeof(name), el);
		for (i = 0; a[i]; i += 2)
			if (!strcmp(a[i], "id"))
				copy(id, sizeof(id), a[i + 1]);
			else if (!strcmp(a[i], "from"))
				copy(from, sizeof(from), a[i + 1]);
			else if (!strcmp(a[i], "type"))
				copy(type, sizeof(type), a[i + 1]);
	} else if (depth == 3 && asker && ready && !strcmp(el, "query")) {
		for (i = 0; a[i]; i += 2)
			if (!strcmp(a[i], "by"))
				by[(unsigned char)a[i + 1][0]]++;
	} else if (depth == 4 && asker && !strcmp(type, "error")) {
		for (i = 0; a[i] && strcmp(a[i + 1], "urn:ietf:params:xml:ns:xmpp-stanzas"); i += 2)
			;
		if (!a[i] || !strcmp(el, "text"))
			return;
		for (i = 0; i < 15 && *conditions[i].name && strcmp(conditions[i].name, el); i++)
			;
		snprintf(conditions[i].name, sizeof(conditions[i].name), "%s", el);
		conditions[i].n++;
	}
}

static void
leave(int sig)
{
	leaving = 1;
}

static void
end(void *data, const char *el)
{
	if (--depth != 1 || stall)
		return;
	if (!strcmp(name, "iq") && !strcmp(id, "bind")) {
		ready = 1;
		if (!asker)
			say("<presence/>");
		while (asker && sent < wanted && sent < window)
			request();
	} else if (!strcmp(name, "iq") && asker) {
		if (atoi(id) < (int)sizeof(seen) && seen[atoi(id)]++) {
			twice++;
			return;
		}
		if (!strcmp(type, "result"))
			answered++;
		else if (!strcmp(type, "error"))
			errors++;
		if (sent < wanted)
			request();
	} else if (!strcmp(name, "iq") && (!strcmp(type, "get") || !strcmp(type, "set"))) {
		if (delay > 0) {
			if (last - first == QUEUE)
				exit(2);
			strcpy(queue[last % QUEUE].id, id);
			strcpy(queue[last++ % QUEUE].from, from);
			return;
		}
		say("<iq type='result' id='%s' to='%s'><query xmlns='test' by='%s'/></iq>",
		    id, from, resource);
	}
}

/* Connect to a port, or accept a connection there. */
static void
meet(const char *port, int serve)
{
	struct sockaddr_in sa = { .sin_family = AF_INET };
	int s, one = 1;

	sa.sin_port = htons(atoi(port));
	sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	s = fd = socket(AF_INET, SOCK_STREAM, 0);
	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (serve ? bind(s, (void *)&sa, sizeof(sa)) || listen(s, 0) :
	            connect(s, (void *)&sa, sizeof(sa)))
		exit(1);
	if (serve == 1 && (fd = accept(s, NULL, NULL)) < 0)
		exit(1);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

static void
deaf(const char *port)
{
	struct sockaddr_in sa = { .sin_family = AF_INET };
	int i, s;

	meet(port, 2);
	sa.sin_port = htons(atoi(port));
	sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	for (i = 0; i < 3; i++) {
		s = socket(AF_INET, SOCK_STREAM, 0);
		fcntl(s, F_SETFL, O_NONBLOCK);
		connect(s, (void *)&sa, sizeof(sa));
	}
	pause();
}

/* Send requests, and read nothing until three seconds after that got stuck. */
static void
stalling(const char *port)
{
	static char b[65536], request[2048];
	struct pollfd p = { .events = POLLIN };
	int n, off = 0, len = 0;
	char fill[1400];

	meet(port, 1);
	say("<stream:stream id='1' xmlns='jabber:component:accept' "
	    "xmlns:stream='http://etherx.jabber.org/streams'>");
	memset(fill, 'x', sizeof(fill));
	p.fd = fd;
	fcntl(fd, F_SETFL, O_NONBLOCK);
	while (answered < wanted && poll(&p, 1, stall == 2 ? 1000 : 20000) >= 0) {
		if (stall == 2 && !p.revents) {
			puts("stuck");
			fflush(stdout);
			sleep(3);
			stall = 3;
		}
		if (p.revents & POLLIN) {
			if ((n = read(fd, b, sizeof(b))) <= 0 || !XML_Parse(parser, b, n, 0))
				break;
			if (ready && stall == 1) {
				say("<handshake/><presence from='service@localhost/a' "
				    "to='proxy.localhost'/>");
				stall = 2;
			}
		}
		if (off == len && sent < wanted) {
			len = sprintf(request, "<iq type='get' from='u@h/r' id='%d' "
			    "to='proxy.localhost'><q>%.*s</q></iq>", sent++, (int)sizeof(fill), fill);
			off = 0;
		}
		if ((p.revents & POLLOUT) && (n = write(fd, request + off, len - off)) > 0)
			off += n;
		p.events = stall == 2 ? POLLOUT : POLLIN |
		    (stall == 3 && (off < len || sent < wanted) ? POLLOUT : 0);
	}
	printf("%d of %d in order\n", answered, wanted);
	exit(answered != wanted);
}

static void
change(int sig)
{
	leaving = 1;
}

/* Pass on what comes at a port to another one. */
static void
tamper(const char *port, const char *to)
{
	static char b[65536];
	struct pollfd p[2] = { { .events = POLLIN }, { .events = POLLIN } };
	struct sigaction sa = { .sa_handler = change };
	int i, n;

	sigaction(SIGUSR1, &sa, NULL);
	meet(port, 1);
	p[0].fd = fd;
	meet(to, 0);
	p[1].fd = fd;
	while (poll(p, 2, -1) > 0 || leaving)
		for (i = 0; i < 2; i++) {
			if (!(p[i].revents & (POLLIN | POLLHUP)))
				continue;
			if ((n = read(p[i].fd, b, sizeof(b))) <= 0)
				exit(0);
			if (i == 1 && leaving)
				b[n - 1] ^= 1;
			if (write(p[!i].fd, b, n) != n)
				exit(1);
		}
}

static void
login(const char *port, const char *user)
{
	static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	static const char stream[] = "<stream:stream to='%s' version='1.0' "
	    "xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>";
	char plain[256] = "", base[400], b[4096];
	int i, n;
	unsigned long v;

	meet(port, 0);
	n = sprintf(plain + 1, "%s", user) + 1;
	n += sprintf(plain + n + 1, "pw") + 1;
	for (i = 0; i < n; i += 3) {
		v = (plain[i] & 255UL) << 16 | (plain[i + 1] & 255UL) << 8 | (plain[i + 2] & 255UL);
		sprintf(base + i / 3 * 4, "%c%c%c%c", digits[v >> 18], digits[v >> 12 & 63],
		        i + 1 < n ? digits[v >> 6 & 63] : '=', i + 2 < n ? digits[v & 63] : '=');
	}
	say(stream, host);
	say("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>%s</auth>", base);
	for (n = 0; n < (int)sizeof(b) - 1 && !strstr(b, "<success"); b[n] = '\0')
		if ((i = read(fd, b + n, sizeof(b) - 1 - n)) <= 0)
			exit(1);
		else
			n += i, b[n] = '\0';
	say(stream, host);
	say("<iq type='set' id='bind'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>"
	    "<resource>%s</resource></bind></iq>", resource);
}

int
main(int argc, char **argv)
{
	static char b[65536];
	struct timespec gap = { 0, 20000 };
	struct sigaction sa = { .sa_flags = 0 };
	struct pollfd p = { .events = POLLIN };
	struct timespec t;
	long long due = 0, ms;
	int i, n, quiet = 0;

	if (argc == 2) {
		for (; read(0, b, 1) == 1; nanosleep(&gap, NULL))
			if (write(1, b, 1) != 1)
				return 1;
		return 0;
	}
	if (!strcmp(argv[1], "deaf"))
		deaf(argv[2]);
	if (!strcmp(argv[1], "tamper"))
		tamper(argv[2], argv[3]);
	parser = XML_ParserCreate("UTF-8");
	XML_SetElementHandler(parser, start, end);
	if (!strcmp(argv[1], "stall")) {
		stall = 1;
		wanted = atoi(argv[3]);
		stalling(argv[2]);
	}
	asker = !strcmp(argv[1], "asker");
	host = asker ? "localhost" : argv[4];
	resource = argv[asker ? 4 : 5];
	if (asker) {
		to = argv[5];
		wanted = atoi(argv[6]);
		if (argc > 7)
			window = atoi(argv[7]);
	} else if (argc > 6)
		delay = atoi(argv[6]);
	login(argv[2], argv[3]);
	p.fd = fd;
	sa.sa_handler = leave;
	sigaction(SIGUSR1, &sa, NULL);
	for (;;) {
		clock_gettime(CLOCK_MONOTONIC, &t);
		ms = t.tv_sec * 1000LL + t.tv_nsec / 1000000;
		if (first < last && !due)
			due = ms + delay;
		if (due && ms >= due) {
			say("<iq type='result' id='%s' to='%s'><query xmlns='test' by='%s'/></iq>",
			    queue[first % QUEUE].id, queue[first % QUEUE].from, resource);
			first++;
			due = first < last ? ms + delay : 0;
		}
		/* when all have an answer, does one get another? */
		quiet = asker && answered + errors == wanted;
		n = poll(&p, 1, quiet ? 500 : asker ? 5000 : due ? (int)(due - ms) : -1);
		if (leaving == 1 && leaving++)
			say("<presence type='unavailable'/>");
		if (n < 0 || (n == 0 && due))
			continue;
		if (n == 0 || (n = read(fd, b, sizeof(b))) <= 0 || !XML_Parse(parser, b, n, 0))
			break;
	}
	if (!asker)
		return 1;
	printf("%d sent, %d answered, %d errors;", sent, answered, errors);
	for (i = 0; i < 256; i++)
		if (by[i])
			printf(" %c %d", i, by[i]);
	for (i = 0; *conditions[i].name; i++)
		printf(" %s %d", conditions[i].name, conditions[i].n);
	printf("; %d twice\n", twice);
	return answered + errors != wanted || twice > 0;
}
END

# A program around client_proxy.c that plays the server to it without a network:
#	harness FILE PIECE      feed FILE in pieces of so many bytes
# and, built for libFuzzer, feeds what that makes up. It checks what must hold
# whatever comes in.
build_harness() {
	mkdir -p "$TESTDIR/harness"
	sed -n '/^: <<.*harness.c/,/^END/p' test.sh | sed '1d;$d' >"$TESTDIR/harness/harness.c"
	cp client_proxy.c "$TESTDIR/harness"
	cp "$config" "$TESTDIR/harness/config.h"
	harness=$TESTDIR/harness/${1%% *}
	# shellcheck disable=SC2086 # words
	"$2" -std=gnu99 -w -g -O1 $3 -DVERSION='"harness"' -o "$harness" \
	    "$TESTDIR/harness/harness.c" -lexpat -lbearssl
}

: <<\END # harness.c
#include <assert.h>
#include <unistd.h>
#define write(f, b, n) ((f) == 2 ? (ssize_t)(n) : (write)(f, b, n))
#define main client_proxy
#include "client_proxy.c"
#undef main
#undef write

static const char prelude[] = "<stream:stream id='1' xmlns:s='urn:s' xmlns='"
    NS_COMPONENT "' xmlns:stream='" NS_STREAM "'><handshake/>"
    "<presence from='service@localhost/a' to='proxy.localhost'/>"
    "<presence from='service@localhost/b' to='proxy.localhost'/>";

static int other;               /* the server's end */
static XML_Parser seen, sent;   /* what goes in and what comes out, apart */
static int seendepth, sentdepth, started, vague, measuring;
static long asks, responses, messages, iqs, bounces;

static const char *
find(const char **a, const char *name)
{
	for (; *a && strcmp(*a, name); a += 2)
		;
	return *a ? a[1] : NULL;
}

static void
seenstart(void *data, const char *name, const char **a)
{
	const char *f = find(a, "from"), *t = find(a, "to"), *y = find(a, "type");
	const char *ns = find(a, "xmlns");
	int n;

	if (seendepth++ != 1)
		return;
	if (!started) {
		started = !strcmp(name, "handshake");
		return;
	}
	/* what is too large for an error about it, we do not count */
	for (n = 0; a[n]; n++)
		vague |= n > 8 || strlen(a[n]) > 200;
	if (!f || !*f || !t || !isours(t) || isours(f) ||
	    (ns && strcmp(ns, NS_COMPONENT) && strcmp(ns, NS_CLIENT)))
		return;
	if (!strcmp(name, "message"))
		messages += !y || strcmp(y, "error");
	else if (y && !strcmp(name, "iq")) {
		asks += !strcmp(y, "get") || !strcmp(y, "set");
		responses += !strcmp(y, "result") || !strcmp(y, "error");
	}
}

static void
seenend(void *data, const char *name)
{
	seendepth--;
}

static void
sentstart(void *data, const char *name, const char **a)
{
	const char *f = find(a, "from"), *t = find(a, "to"), *y = find(a, "type");
	char who[PARTMAX + 1];

	if (sentdepth++ != 1)
		return;
	/* who is not the target reaches nobody else */
	if (f && resourceof(f) && dec(who, resourceof(f)) && !istarget(who))
		assert(istarget(t) || (y && !strcmp(y, "error")));
	if (!strcmp(name, "iq") || !strcmp(name, "message") || !strcmp(name, "presence")) {
		assert(f && isours(f) && find(a, "to"));
		iqs += !strcmp(name, "iq");
		bounces += !strcmp(name, "message");
	}
}

static void
sentend(void *data, const char *name)
{
	sentdepth--;
}

/* Read what has been sent, which must be well-formed. */
static int
drain(void)
{
	static char b[65536];
	ssize_t n;
	int all = 0;

	while ((n = read(other, b, sizeof(b))) > 0) {
		assert(measuring || XML_Parse(sent, b, (int)n, 0) == XML_STATUS_OK);
		all = 1;
	}
	return all;
}

static void
check(void)
{
	int i, j, open = 0, listed = 0, chained = 0;

	assert(outpos <= out.len && out.len <= OUTSIZE);
	assert(inlen <= sizeof(in));
	assert(heap <= PARSERHARD);
	assert(nresources >= 0 && nresources <= MAXRESOURCES);
	for (i = 0; i < nresources; i++) {
		assert(*resources[i] && strlen(resources[i]) <= PARTMAX);
		for (j = 0; j < i; j++)
			assert(strcmp(resources[i], resources[j]));
		open += busy[i];
	}
	for (i = 0; i < FIRST; i++)
		for (j = requests[i].next; j != i; j = requests[j].next) {
			assert(requests[j].list == i && requests[requests[j].next].prev == j);
			assert(++listed <= nused - FIRST && j >= FIRST && j < nused);
			if (i == OPEN) {
				assert(relay || requests[j].resource >= 0);
				assert(requests[j].resource < nresources);
				open += requests[j].resource < 0;
			}
			if (i != FREE)
				chained--;
		}
	assert(listed == nused - FIRST && open == nopen);
	for (i = 0; i < MAXREQUESTS; i++)
		for (j = buckets[i]; j; j = requests[j].chain) {
			assert(requests[j].bucket == i && requests[j].list != FREE);
			chained++;
		}
	assert(chained == 0);
}

static void
feed(const char *data, size_t size, size_t piece, int lazy)
{
	size_t n;
	ssize_t w;

	while (size > 0 && fd >= 0) {
		n = MIN(piece, size);
		if ((w = write(other, data, n)) > 0) {
			if (!measuring)
				XML_Parse(seen, data, (int)w, 0);
			data += w;
			size -= (size_t)w;
		}
		ready(held ? POLLOUT : POLLIN | POLLOUT);
		now += 5000;
		if (state == ONLINE)
			chores();
		flush();
		if (w <= 0 || !lazy)
			drain();
		check();
	}
}

static void
play(const char *data, size_t size, size_t piece, int lazy, int plain)
{
	static struct addrinfo nowhere;
	int pair[2], small = 4096, i;

	address = &nowhere;
	seen = XML_ParserCreate("UTF-8");
	sent = XML_ParserCreate("UTF-8");
	XML_SetElementHandler(seen, seenstart, seenend);
	XML_SetElementHandler(sent, sentstart, sentend);
	if (XML_SetReparseDeferralEnabled) {
		XML_SetReparseDeferralEnabled(seen, XML_FALSE);
		XML_SetReparseDeferralEnabled(sent, XML_FALSE);
	}
	seendepth = sentdepth = started = vague = 0;
	asks = responses = messages = iqs = bounces = 0;
	nresources = toomany = 0;
	assert(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	fd = pair[0];
	other = pair[1];
	fcntl(fd, F_SETFL, O_NONBLOCK);
	fcntl(other, F_SETFL, O_NONBLOCK);
	setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
	state = CONNECTING;
	connected();
	if (!plain)
		feed(prelude, strlen(prelude), piece, 0);
	feed(data, size, piece, lazy);
	for (i = 0; fd >= 0 && (drain() || i < 50); i++) {
		ready(held ? POLLOUT : POLLIN | POLLOUT);
		flush();
		check();
	}
	if (fd >= 0 && state == ONLINE && !vague && seendepth == 1) {
		/* one that was handed out may fail later */
		assert(iqs >= asks && iqs <= 2 * asks + responses);
		assert(relay || bounces == messages);
	}
	if (fd >= 0) {
		disconnect("the end");
		drain();
	}
	close(other);
	XML_ParserFree(seen);
	XML_ParserFree(sent);
}

static void
prepare(void)
{
	seed = 1;
	signal(SIGPIPE, SIG_IGN);
}

#ifdef FUZZ
int
LLVMFuzzerTestOneInput(const unsigned char *data, size_t size)
{
	static const size_t pieces[] = { 1, 2, 3, 7, 30, 100, 1000, 100000 };

	if (size == 0)
		return 0;
	prepare();
	play((const char *)data + 1, size - 1, pieces[*data & 7], *data & 8,
	     *data & 16);
	return 0;
}
#else
int
main(int argc, char **argv)
{
	static char b[1 << 20];
	FILE *f = fopen(argv[1], "r");
	size_t n = fread(b, 1, sizeof(b), f);

	(void)argc;
	measuring = 1;
	prepare();
	play(b, n, (size_t)atol(argv[2]), 0, 0);
	printf("%lu out\n", nrequests);
	return 0;
}
#endif
END

# Read the load of the benchmark, which prints microseconds of CPU time:
#	load parse FILE TIMES PIECE     expat alone over FILE, so many times as one
#	                                stream, in pieces of so many bytes
#	load run COMMAND...
#	load serve FILE TIMES STANZAS RESOURCES PORT COMMAND...
#	        the command's, with a server that sends FILE so many times; also how
#	        long that took, the peak of its resident memory in KiB, stanzas lost;
#	        with -1 resources the command is not greeted as a component
#	load relay PORT PIECE
#	        such a command: expat alone, which sends all back that it has read
build_load() {
	load=$TESTDIR/load
	[ ! -x "$load" ] || return 0
	sed -n '/^: <<.*load.c/,/^END/p' test.sh | sed '1d;$d' >"$load.c"
	cc -O2 -o "$load" "$load.c" -lexpat
}

: <<\END # load.c
#define _GNU_SOURCE
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <arpa/inet.h>
#include <err.h>
#include <expat.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

XML_Bool XML_SetReparseDeferralEnabled(XML_Parser, XML_Bool);
#pragma weak XML_SetReparseDeferralEnabled

static char buf[1 << 20];

static long
usec(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* Print the microseconds of CPU time, user and system. */
static void
printcpu(int who)
{
	struct rusage r;

	getrusage(who, &r);
	printf("%ld %ld", (long)r.ru_utime.tv_sec * 1000000 + r.ru_utime.tv_usec,
	       (long)r.ru_stime.tv_sec * 1000000 + r.ru_stime.tv_usec);
}

static void
start(void *data, const char *name, const char **atts)
{
	(void)data, (void)name, (void)atts;
}

static void
end(void *data, const char *name)
{
	(void)data, (void)name;
}

static void
characters(void *data, const char *s, int n)
{
	(void)data, (void)s, (void)n;
}

static XML_Parser
newparser(void)
{
	XML_Parser p = XML_ParserCreate("UTF-8");

	if (XML_SetReparseDeferralEnabled)
		XML_SetReparseDeferralEnabled(p, XML_FALSE);
	XML_SetElementHandler(p, start, end);
	XML_SetCharacterDataHandler(p, characters);
	XML_Parse(p, "<stream>", 8, 0);
	return p;
}

static void
parse(const char *name, long times, size_t piece)
{
	XML_Parser p = newparser();
	int fd = open(name, O_RDONLY);
	ssize_t n;

	while (times-- > 0) {
		lseek(fd, 0, SEEK_SET);
		while ((n = read(fd, buf, piece)) > 0)
			if (!XML_Parse(p, buf, (int)n, 0))
				errx(1, "%s", XML_ErrorString(XML_GetErrorCode(p)));
	}
	printcpu(RUSAGE_SELF);
}

static struct sockaddr_in
loopback(int port)
{
	struct sockaddr_in sin = { .sin_family = AF_INET };

	sin.sin_port = htons((unsigned short)port);
	sin.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return sin;
}

static void
nodelay(int fd)
{
	int one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

static void
relay(int port, size_t piece)
{
	XML_Parser p = newparser();
	struct sockaddr_in sin = loopback(port);
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	struct pollfd ready = { .fd = fd, .events = POLLIN };
	ssize_t n, at, w;

	if (connect(fd, (struct sockaddr *)&sin, sizeof(sin)) < 0)
		err(1, "port %d", port);
	nodelay(fd);
	while (poll(&ready, 1, -1) > 0 && (n = read(fd, buf, piece)) > 0) {
		if (!XML_Parse(p, buf, (int)n, 0))
			errx(1, "%s", XML_ErrorString(XML_GetErrorCode(p)));
		for (at = 0; at < n; at += w)
			if ((w = write(fd, buf + at, (size_t)(n - at))) < 0)
				err(1, "write");
	}
}

static pid_t
launch(char *command[])
{
	pid_t pid = fork();

	if (pid == 0) {
		execvp(*command, command);
		err(1, "%s", *command);
	}
	return pid;
}

/* Start the command and wait until it has connected. */
static int
serve(int port, char *command[], pid_t *pid)
{
	struct sockaddr_in sin = loopback(port);
	int s = socket(AF_INET, SOCK_STREAM, 0), fd, one = 1;

	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(s, (struct sockaddr *)&sin, sizeof(sin)) < 0 || listen(s, 1) < 0)
		err(1, "port %d", port);
	*pid = launch(command);
	if ((fd = accept(s, NULL, NULL)) < 0)
		err(1, "accept");
	nodelay(fd);
	return fd;
}

static void
await(int fd, const char *what)
{
	size_t n = 0;
	ssize_t r;

	do {
		if ((r = read(fd, buf + n, sizeof(buf) - n - 1)) <= 0)
			errx(1, "waited in vain for %s", what);
		buf[n += (size_t)r] = '\0';
	} while (!strstr(buf, what));
}

static void
greet(int fd, int resources)
{
	int i;

	dprintf(fd, "<stream:stream id='1' xmlns='jabber:component:accept' "
	        "xmlns:stream='http://etherx.jabber.org/streams'><handshake/>");
	await(fd, "subscribe");
	dprintf(fd, "<presence type='subscribed' from='service@localhost' "
	        "to='proxy.localhost'/>");
	await(fd, "probe");
	for (i = 0; i < resources; i++)
		dprintf(fd, "<presence from='service@localhost/r%d' "
		        "to='proxy.localhost'/>", i);
	/* all of them are known when this has come back */
	dprintf(fd, "<message from='u@h' to='proxy.localhost' id='known'/>");
	await(fd, "known");
}

/* Read what there is and count the stanzas that end in it. */
static long
count(int fd)
{
	static size_t kept;
	ssize_t n = read(fd, buf + kept, sizeof(buf) - kept);
	char *s = buf, *e = buf + kept + n;
	long stanzas = 0;

	if (n <= 0)
		errx(1, "the connection has ended");
	for (; (s = memmem(s, (size_t)(e - s), "</iq>", 5)); s += 5)
		stanzas++;
	kept = e - buf < 4 ? (size_t)(e - buf) : 4;
	memmove(buf, e - kept, kept);
	return stanzas;
}

/* Send data so many times, as fast as it is taken, and count what comes out,
 * without ever sleeping: the system would charge the command for waking us.
 * Returns how many stanzas have not come when nothing happens for five seconds. */
static long
flood(int fd, const char *data, size_t size, long times, long stanzas)
{
	struct pollfd p = { .fd = fd };
	long last = usec();
	size_t at = 0;
	ssize_t n;

	while (stanzas > 0 && usec() - last < 5000000) {
		p.events = (short)(times > 0 ? POLLIN | POLLOUT : POLLIN);
		if (poll(&p, 1, 0) <= 0)
			continue;
		last = usec();
		if (p.revents & POLLIN)
			stanzas -= count(fd);
		if (times > 0 && p.revents & POLLOUT &&
		    (n = write(fd, data + at, size - at)) > 0 &&
		    (at += (size_t)n) == size) {
			at = 0;
			times--;
		}
	}
	return stanzas;
}

int
main(int argc, char *argv[])
{
	char path[64], *data;
	long peak = 0, begun, lost, took;
	int fd, file;
	off_t size;
	FILE *f;
	pid_t pid;

	if (!strcmp(argv[1], "parse")) {
		parse(argv[2], atol(argv[3]), (size_t)atol(argv[4]));
		return 0;
	} else if (!strcmp(argv[1], "relay")) {
		relay(atoi(argv[2]), (size_t)atol(argv[3]));
		return 0;
	} else if (!strcmp(argv[1], "run")) {
		waitpid(launch(argv + 2), NULL, 0);
		printcpu(RUSAGE_CHILDREN);
		return 0;
	}
	file = open(argv[2], O_RDONLY);
	size = lseek(file, 0, SEEK_END);
	if (argc < 8 || !(data = malloc((size_t)size + 1)) ||
	    pread(file, data, (size_t)size, 0) != size)
		err(1, "%s", argv[2]);
	fd = serve(atoi(argv[6]), argv + 7, &pid);
	if (atoi(argv[5]) >= 0)
		greet(fd, atoi(argv[5]));
	fcntl(fd, F_SETFL, O_NONBLOCK);
	begun = usec();
	lost = flood(fd, data, (size_t)size, atol(argv[3]), atol(argv[4]));
	took = usec() - begun;
	sprintf(path, "/proc/%ld/status", (long)pid);
	f = fopen(path, "r");
	while (f && fgets(buf, sizeof(buf), f) && sscanf(buf, "VmHWM: %ld", &peak) != 1)
		;
	kill(pid, SIGTERM);
	waitpid(pid, NULL, 0);
	printcpu(RUSAGE_CHILDREN);
	printf(" %ld %ld %ld", took, peak, lost);
	return 0;
}
END

# ---- helpers: parts of tests ----

# Two users talk to a service of three resources, which asks one's client for its
# name, and then one of them leaves.
chat() {
	"$1"
	proxy relay=1
	services a b c
	login user x
	login other y
	tell user "<presence/>"
	tell other "<presence/>"
	for u in user other; do
		first=
		for n in 1 2 3; do
			tell $u "<message type='chat' id='$u$n' to='proxy.localhost'><body>hi $n</body></message>"
			await grep -l "id='$u$n'\|id=.$u$n" "$dir/a.out" "$dir/b.out" "$dir/c.out"
			r=$(cd "$dir" && grep -l "$u$n" a.out b.out c.out)
			r=${r%.out}
			[ "${first:=$r}" = "$r" ]
			hear "$r" "<message" "$u$n" "<body>hi $n</body>" "from='proxy.localhost/$u@localhost/[xy]'"
			case $u in user) at=user@localhost/x ;; *) at=other@localhost/y ;; esac
			tell "$r" "<message type='chat' id='re$u$n' to='proxy.localhost/$at'><body>hello $n</body></message>"
			hear $u "<message" "re$u$n" "<body>hello $n</body>" "from='proxy.localhost'" "to='$at'"
		done
		eval "$u=$r"
	done
	# the conversation moves when its resource leaves
	# shellcheck disable=SC2154 # set by eval
	r=$user
	tell "$r" "<presence type='unavailable'/>"
	logged "left: service@localhost/$r"
	tell user "<message type='chat' id='moved' to='proxy.localhost'><body>still there?</body></message>"
	rest=$(echo a.out b.out c.out | sed "s/$r.out//")
	# shellcheck disable=SC2086 # two files
	await sh -c "cd '$dir' && grep -l moved $rest"
	grep moved "$dir/$r.out" && return 1
	r=$(cd "$dir" && eval "grep -l moved $rest")
	r=${r%.out}
	# the service asks
	tell "$r" "<iq type='get' id='version' to='proxy.localhost/user@localhost/x'><query xmlns='jabber:iq:version'/></iq>"
	hear user "<iq" "id='version'" "type='get'" "from='proxy.localhost/service@localhost/$r'"
	tell user "<iq type='result' id='version' to='proxy.localhost/service@localhost/$r'>
		<query xmlns='jabber:iq:version'><name>Tester</name></query></iq>"
	hear "$r" "<iq" "id='version'" "type='result'" "from='proxy.localhost/user@localhost/x'" "<name>Tester</name>"
	tell "$r" "<iq type='get' id='nobody' to='proxy.localhost/user@localhost/nobody'><query xmlns='test'/></iq>"
	hear "$r" "<iq" "id='nobody'" "type='error'" "from='proxy.localhost/user@localhost/nobody'"
	# a user who has left: the conversation's resource is told
	tell other "<message type='chat' id='bye' to='proxy.localhost'><body>bye</body></message>"
	await grep -l "bye" "$dir/a.out" "$dir/b.out" "$dir/c.out"
	r=$(cd "$dir" && grep -l "bye" a.out b.out c.out)
	r=${r%.out}
	cut_off other
	hear "$r" "bye"
	for n in 1 2 3 4 5 6 7 8 9; do
		tell "$r" "<message type='chat' id='late$n' to='proxy.localhost/other@localhost/y'><body>hi</body></message>"
	done
	hear "$r" "<message" "id='late9'" "type='error'" "from='proxy.localhost/other@localhost/y'"
	unlogged dropped
}

# The stanzas that the proxy has sent since the last time: $news. It has finished
# with all before when it has answered twice.
news() {
	for _ in 1 2; do
		mark=mark$((${mark#mark} + 1))
		deliver iq get mark@h proxy.localhost/mark "id='$mark'/"
		await grep -q "id='$mark'" "$dir/srv.out"
	done
	stanzas <"$dir/srv.out" | grep -v "to='mark@h'" >"$dir/all"
	touch "$dir/old"
	news=$(tail -n "+$(($(wc -l <"$dir/old") + 1))" "$dir/all")
	mv "$dir/all" "$dir/old"
}
mark=mark0

# What goes out for a request that has failed, from the address it had asked.
failed_with() {
	echo "<iq type='error' id='$2' from='$3' to='u@h/r'><error type='wait'><$1 xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>"
}

# Ask for 10,000 requesters: who has which resource is in $dir/$1.
ask_for_many() {
	awk -v p="$1" 'BEGIN {
		for (i = 0; i < 10000; i++)
			printf "<iq type=\"get\" id=\"%s%d\" from=\"user%d@localhost/r\" to=\"proxy.localhost\"/>", p, i, i
	}' >"$dir/srv.in"
	await grep -q "id='${1}9999'" "$dir/srv.out"
	grep -o "<iq type='get' id='$1[0-9]*' from='[^']*' to='[^']*'" "$dir/srv.out" |
	    sed "s/.* from='\([^']*\)' to='\([^']*\)'/\1 \2/" | sort >"$dir/$1"
	[ "$(wc -l <"$dir/$1")" = 10000 ]
}

# All that an operator sees in a week, in the shortest time: the first contact,
# joins and leaves, requests, silence, both sides' restarts.
week() {
	$1
	login a a service
	tell a "<presence/>"
	proxy keepalive=1
	logged online
	hear a "<presence" "type='subscribe'" "from='proxy.localhost'"
	login user x
	ask user 1
	hear user "<iq" "type='error'" "id='1'" "<service-unavailable"
	tell a "<presence type='subscribed' to='proxy.localhost'/>"
	logged "joined: service@localhost/a: 1 online"
	ask user 2
	hear a "<iq" "id='2'" "from='proxy.localhost/user@localhost/x'"
	answer a
	hear user "<iq" "type='result'" "id='2'" "from='proxy.localhost'"
	login b b service
	tell b "<presence/>"
	logged "joined: service@localhost/b: 2 online"
	tell a "<presence type='unavailable'/>"
	logged "left: service@localhost/a: 1 online"
	ask user 3 room@proxy.localhost
	hear b "<iq" "id='3'" "from='room@proxy.localhost/user@localhost/x'"
	answer b
	hear user "<iq" "type='result'" "id='3'" "from='room@proxy.localhost'"
	tell a "<presence/>"
	logged "joined: service@localhost/a: 2 online"
	sleep 3
	unlogged disconnected
	stop
	: >"$log"
	proxy
	logged "joined: .*: 2 online"
	cut_off b
	logged "left: service@localhost/b: 1 online"
	# shellcheck disable=SC2086 # several
	for p in $serverpids; do
		end "$p" 9
	done
	logged "left: .*: 0 online"
	rm -f "$dir/a".* "$dir/user".*
	: >"$log"
	$1
	login a a service
	tell a "<presence/>"
	logged "joined: service@localhost/a: 1 online"
	login user x
	ask user 4
	hear a "<iq" "id='4'"
	answer a
	hear user "<iq" "type='result'" "id='4'"
}

# The id of what the proxy has asked the target last.
last_ask() {
	grep -o "<presence type='\(subscribe\|probe\)' id='[^']*'" "$dir/srv.out" |
	    sed -n "\$s/.* id='\(.*\)'/\1/p"
}

# The target confirms the subscription; the proxy probes. The server has read the
# probe once the ping that follows it is back.
probed() {
	deliver presence subscribed service@localhost proxy.localhost /
	probe_is_read
}

probe_is_read() {
	hear srv "<presence type='probe' id='[^']*' from='proxy.localhost' to='service@localhost'/>"
	hear srv "<iq type='get' id='$(last_ask)' from='proxy.localhost' to='proxy.localhost'>"
	tell srv "$heard"
}

# N bytes of a string, again and again.
bytes() { yes "$2" | tr -d '\n' | head -c "$1"; }

# N bytes of a format, each time with another short name for %.
names() {
	awk -v n="$1" -v format="$2" 'BEGIN {
		digits = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"
		parts = split(format, part, "%")
		for (i = 53; n > 0; i++) {
			name = ""
			for (v = i; v > 0; v = int(v / 53))
				name = name substr(digits, v % 53 + 1, 1)
			s = part[1]
			for (j = 2; j <= parts; j++)
				s = s name part[j]
			printf "%s", s
			n -= length(s)
		}
	}'
}

# The proxy uses less than so many KiB of memory.
fits_in() {
	case ${CFLAGS-}${WRAPPER-} in *sanitize* | *valgrind* | *qemu*) return 0 ;; esac
	rss=$(awk '/VmRSS/ { print $2 }' "/proc/$proxypid/status")
	peak=$(awk '/VmHWM/ { print $2 }' "/proc/$proxypid/status")
	echo "$rss KiB, $peak at most"
	[ "$rss" -lt "$1" ] && [ "$peak" -lt 20480 ]
}

# The stream goes on: a request passes.
goes_on() {
	deliver iq get u@h/r proxy.localhost "id='$1'/"
	hear srv "<iq type='get' .*id='$1'"
	fits_in 8192
}

# The stream ends with this error, and comes back by itself.
ends_with() {
	hear srv "<stream:error><$1 xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>"
	logged "disconnected: "
	fits_in 8192
	serve
	: >"$log"
	welcome
	online a
	logged "joined: service@localhost/a"
	fits_in 8192
}

# The last byte of a stanza arrives alone, and no other after it.
split_anywhere() {
	scripted
	s="<iq type='get' id='s' from='u@h/r' to='proxy.localhost'><a b='c'>d</a></iq>"
	i=1
	while [ $i -lt ${#s} ]; do
		n=$((${#s} - i))
		tell srv "$(printf %s "$s" | head -c $i)"
		sleep 0.01
		tell srv "$(printf %s "$s" | tail -c $n)"
		hear srv "<iq type='get' id='s'" "d</a></iq>"
		i=$((i + 1))
	done
	# an expat that defers would look again at twice as many bytes only
	tell srv "<iq type='get' id='d' from='u@h/r' to='proxy.localhost'><a b='$(bytes 200 x)"
	sleep 0.1
	tell srv ">"
	sleep 0.1
	tell srv "'/></iq>"
	hear srv "<iq type='get' id='d'"
}

# How often the kernel has let the proxy run.
switches() { awk '/ctxt_switches/ { n += $2 } END { print n }' "/proc/$proxypid/status"; }

# Stanzas as large and as odd as a client may send them, on one of the servers.
ugly_stanzas() {
	$1
	login a a service
	tell a "<presence/>"
	proxy
	hear a "type='subscribe'"
	tell a "<presence type='subscribed' to='proxy.localhost'/>"
	logged joined
	login user x
	ugly a "<q a=\"$(bytes 100000 "'")\"/>"
	ugly a "<q a='$(bytes 100000 "&#13;")'/>"
	ugly a "<q$(names 100000 " %=''")/>"
	ugly a "<q>$(bytes 250000 ">")</q>"
	ugly user "<q><![CDATA[$(bytes 250000 "<")]]></q>"
	ugly a "<q>$(names 250000 "<%/>")</q>"
	ugly a "<q>$(names 250000 "<%:a xmlns:%='u'/>")</q>"
	ugly a "<q>$(bytes 250000 "<a/>")</q>"
	# ejabberd itself falls over this, wherever it is sent
	[ "$1" = ejabberd ] ||
		ugly a "$(bytes 105000 "<a>")$(bytes 140000 "</a>")"
	unlogged disconnected
	fits_in 8192
}

# Who gets it, or its refusal, and the next one too: the content.
ugly() {
	uglies=${uglies-}1
	tell user "<iq type='set' id='u$uglies' to='proxy.localhost'>$2</iq>"
	# with some expats the server would wait for more after a large tag
	tell user "$(bytes 150000 " ")"
	ask user "after$uglies"
	await grep -q "id='after$uglies'" "$dir/a.out"
	await grep -q "id='u$uglies'" "$dir/$1.out"
}

# ---- tests: on a real Prosody ----

# The exchange of mod_client_proxy's documentation, to the letter.
exchange() {
	prosody
	proxy
	services a b
	login user abc
	tell user "<iq type='get' id='1234' to='proxy.localhost'><query xmlns='test'/></iq>"
	r=a
	sleep 0.2
	find_stanza a "<iq" || { r=b; hear b "<iq"; }
	echo "$heard" | grep -q " type='get'"
	echo "$heard" | grep -q " id='1234'"
	echo "$heard" | grep -q " to='service@localhost/$r'"
	echo "$heard" | grep -q " from='proxy.localhost/user@localhost/abc'"
	tell $r "<iq type='result' id='1234' to='proxy.localhost/user@localhost/abc'/>"
	hear user "<iq" " type='result'" " id='1234'" " to='user@localhost/abc'" \
	    " from='proxy.localhost'"
}

each_resource_gets_its_share() {
	prosody
	proxy
	services a
	for r in b c; do
		peer worker "$c2s" service localhost $r
		logged "joined: service@localhost/$r:"
	done
	tell a "<presence type='unavailable'/>"
	logged "left: service@localhost/a: 2 online"
	"$peer" asker "$c2s" user x proxy.localhost 400 >"$dir/counts"
	cat "$dir/counts"
	# 200 each; less than 140 has a chance of one in a billion
	awk '$3 != 400 { exit 1 }
	{ exit !($7 == "b" && $8 > 140 && $9 == "c" && $10 > 140) }' "$dir/counts"
}

resources_join_leave_and_are_cut_off() {
	prosody
	proxy
	services a b c
	tell a "<presence type='unavailable'/>"
	logged "left: service@localhost/a: 2 online"
	cut_off b
	logged "left: service@localhost/b: 1 online"
	login user x
	for i in 1 2 3 4 5 6; do
		ask user $i
		hear c "<iq" "id='$i'"
		answer c
		hear user "<iq" "type='result'" "id='$i'"
	done
	tell a "<presence/>"
	logged "joined: service@localhost/a: 2 online"
	tell a "<presence><show>away</show></presence>"
	tell c "</stream:stream>"
	logged "left: service@localhost/c: 1 online"
	ask user 7
	hear a "<iq" "id='7'"
}

nobody_online() {
	prosody
	proxy
	login user x
	ask user 1
	hear user "<iq" "type='error'" "id='1'" "from='proxy.localhost'" \
	    "<error type='cancel'><service-unavailable"
	services a
	cut_off a
	logged "left: service@localhost/a: 0 online"
	ask user 2
	hear user "<iq" "type='error'" "id='2'" "<service-unavailable"
}

subscription_is_approved_late_refused_revoked() {
	prosody
	proxy
	logged online
	sleep 1
	service a
	hear a "<presence" "type='subscribe'" "from='proxy.localhost'"
	tell a "<presence type='unsubscribed' to='proxy.localhost'/>"
	logged "not subscribed"
	unlogged joined
	stop
	proxy
	hear a "<presence" "type='subscribe'" "from='proxy.localhost'"
	sleep 1
	unlogged joined
	tell a "<presence type='subscribed' to='proxy.localhost'/>"
	logged "joined: service@localhost/a: 1 online"
	login user x
	tell a "<presence type='unsubscribed' to='proxy.localhost'/>"
	logged "left: service@localhost.*: 0 online"
	ask user 1
	hear user "type='error'" "id='1'" "<service-unavailable"
}

subscription_is_approved_already() {
	prosody
	proxy
	services a
	stop
	: >"$log"
	proxy
	logged "joined: service@localhost/a: 1 online"
	hush a "subscribe"
}

# A host that is not there answers with an error; asked again, it is there.
subscription_is_asked_for_again() {
	prosody
	proxy askmin=1 target='"service@other.localhost"'
	logged "not subscribed: service@other.localhost: not-allowed"
	end "$serverpids"
	hosts="$hosts
	VirtualHost 'other.localhost'"
	prosody
	login a a service other.localhost
	tell a "<presence/>"
	hear a "<presence" "type='subscribe'" "from='proxy.localhost'"
	tell a "<presence type='subscribed' to='proxy.localhost'/>"
	logged "joined: service@other.localhost/a: 1 online"
}

the_target_subscribes_too() {
	prosody
	proxy
	services a
	tell a "<presence type='subscribe' to='proxy.localhost'/>"
	roster a "subscription='both'"
	hear a "<presence [^>]*/>" "from='proxy.localhost'" "to='service@localhost'"
	service b
	hear b "<presence [^>]*/>" "from='proxy.localhost'"
}

odd_requesters_are_answered() {
	prosody
	proxy
	services a
	long=$(printf '%0900d' 0)
	i=0
	for r in 'שלום' 'مرحبا abc' '🙂' 'with space' "o&apos;clock" '100%' '%41' \
	    'UPPER' '&quot;&lt;&amp;&gt;' 'a/b@c' "$long"; do
		i=$((i + 1))
		login "user$i" "$r"
		ask "user$i" $i
		hear a "<iq" "id='$i'"
		answer a
		hear "user$i" "<iq" "type='result'" "id='$i'"
		hear_to "$jid"
	done
	longest=$(printf '%01023d' 0)
	login userx "$longest"
	ask userx x
	hear userx "<iq" "type='error'" "id='x'" "type='modify'><not-acceptable"
}

a_node_answers_as_itself() {
	prosody
	proxy
	services a
	login user x
	ask user 1 room@proxy.localhost
	hear a "<iq" "id='1'" "from='room@proxy.localhost/user@localhost/x'"
	answer a
	hear user "<iq" "type='result'" "id='1'" "from='room@proxy.localhost'"
	ask user 2 proxy.localhost/there
	hear user "<iq" "type='error'" "id='2'" "from='proxy.localhost/there'" \
	    "type='cancel'><service-unavailable"
	ask user 3 room@proxy.localhost/there
	hear user "<iq" "type='error'" "id='3'" "from='room@proxy.localhost/there'" \
	    "<service-unavailable"
}

messages_and_the_targets_requests_are_refused() {
	prosody
	proxy
	services a
	login user x
	tell user "<message type='chat' id='m' to='proxy.localhost'><body>hi</body></message>"
	hear user "<message" "type='error'" "id='m'" "type='cancel'><feature-not-implemented"
	ask a 1
	hear a "<iq" "type='error'" "id='1'" "type='cancel'><feature-not-implemented"
	ask a 2 proxy.localhost/user@localhost/x
	hear a "<iq" "type='error'" "id='2'" "<feature-not-implemented"
	hush user "id='2'"
	tell user "<presence type='subscribe' to='proxy.localhost'/>"
	roster user "<item( (jid|subscription)='[^']*')*/>"
	tell user "<presence to='proxy.localhost'/>"
	tell user "<iq type='result' id='3' to='proxy.localhost/x@localhost/y'/>"
	logged "dropped: iq result from user@localhost/x"
	unlogged "user@localhost/x: . online"
}

# An answer whose request came before a restart is led back all the same.
the_proxy_restarts() {
	prosody
	proxy
	services a
	login user x
	ask user 1
	hear a "<iq" "id='1'"
	stop
	proxy
	await sh -c "[ \$(grep -c 'joined: .*: 1 online' '$log') = 2 ]"
	answer a
	hear user "<iq" "type='result'" "id='1'"
	kill -9 "$proxypid"
	proxy
	await sh -c "[ \$(grep -c 'joined: .*: 1 online' '$log') = 3 ]"
	ask user 2
	hear a "<iq" "id='2'"
}

the_server_restarts() {
	prosody
	proxy
	services a
	kill "$serverpids"
	logged "left: .*: 0 online"
	logged disconnected
	await gone "$serverpids"
	logged "Connection refused"
	prosody
	rm -f "$dir/a".*
	service a
	await sh -c "[ \$(grep -c 'joined: .*: 1 online' '$log') = 2 ]"
	end "$serverpids" 9
	prosody
	rm -f "$dir/a".*
	service a
	await sh -c "[ \$(grep -c 'joined: .*: 1 online' '$log') = 3 ]"
	login user x
	ask user 1
	hear a "<iq" "id='1'"
}

wrong_secret() {
	prosody
	proxy secret='"wrong"'
	logged "disconnected: not-authorized"
	logged waiting
	unlogged wrong
	stop
	proxy domain='"nobody.localhost"'
	logged "disconnected: host-unknown"
}

# A name and its password are the same person twice: the second is refused.
conflict() {
	prosody
	proxy
	logged online
	first=$proxypid
	proxy
	logged "disconnected: conflict"
	stop
	gone "$first" && return 1
	proxypid=$first
	stop
}

# Jitsi Meet's conference focus; somebody else has logged in to its account.
jitsi_meet() {
	hosts='VirtualHost "meet.example"
		authentication = "anonymous"
	VirtualHost "auth.meet.example"
	Component "focus.meet.example"
		component_secret = "secret"'
	prosody
	proxy domain='"focus.meet.example"' target='"focus@auth.meet.example"' \
	    prefix='"focus"'
	login focus focus focus auth.meet.example
	tell focus "<presence/>"
	hear focus "type='subscribe'"
	tell focus "<presence type='subscribed' to='focus.meet.example'/>"
	logged "joined: focus@auth.meet.example/focus: 1 online"
	login other other focus auth.meet.example
	tell other "<presence/>"
	hear focus "<presence" "from='focus@auth.meet.example/other'"
	login guest '' '' meet.example
	for i in 1 2 3 4 5 6; do
		tell guest "<iq type='set' id='$i' to='focus.meet.example'>
			<conference xmlns='http://jitsi.org/protocol/focus' room='r@x'/></iq>"
		hear focus "<iq" "type='set'" "id='$i'" \
		    "<conference [^>]*xmlns='http://jitsi.org/protocol/focus'"
		case $heard in
		*" from='focus.meet.example/$jid'"*) ;;
		*) echo "$heard"; return 1 ;;
		esac
		tell focus "<iq type='result' id='$i' to='focus.meet.example/$jid'>
			<conference xmlns='http://jitsi.org/protocol/focus' ready='true'/></iq>"
		hear guest "<iq" "type='result'" "id='$i'" "from='focus.meet.example'" \
		    "ready='true'"
	done
	unlogged "focus@auth.meet.example/other"
	hush other "<iq.*conference"
}

# ---- tests: on each of the servers ----

a_week_on_prosody() {
	need prosody prosody
	week prosody
}

a_week_on_ejabberd() {
	need ejabberdctl ejabberd
	week ejabberd
}

a_week_on_jabberd2() {
	need jabberd2-router jabberd2
	week jabberd2
}

# While workers are killed, and start again, exactly one stanza comes back for
# each request.
every_request_gets_one_answer() {
	prosody
	proxy
	services a
	build_peer
	for r in b c d e; do
		peer worker "$c2s" service localhost $r 1
		eval "pid_$r=$pid"
		logged "joined: service@localhost/$r:"
	done
	tell a "<presence type='unavailable'/>"
	logged "left: service@localhost/a: 4 online"
	askers=
	for u in x y z; do
		"$peer" asker "$c2s" user $u proxy.localhost 2000 >"$dir/asked.$u" &
		askers="$! $askers"
	done
	for r in b c d e b c d; do
		sleep "0.$(od -An -N1 -tu1 /dev/urandom | tr -d ' ')"
		eval "end \$pid_$r 9"
		peer worker "$c2s" service localhost $r 1
		eval "pid_$r=$pid"
	done
	# shellcheck disable=SC2086 # several
	wait $askers || :
	kill -USR1 "$proxypid"
	logged counted
	cat "$dir"/asked.? "$log"
	[ "$(grep -c "^2000 sent, .* 0 twice$" "$dir"/asked.? | grep -c ':1$')" = 3 ]
	awk '{ n += $1; a += $3 + $5; e += $5 } END { exit !(n == 6000 && a == n && e > 0) }' "$dir"/asked.?
	logged " 0 late.* 0 open" || logged " [0-9]* late.* 0 open"
}

# A command of three steps (XEP-0050) stays with the resource that began it.
steps_of_a_command_stay_together() {
	prosody
	proxy choice=STICKY
	services a b c
	met=
	for who in q r s t u v w x; do
		login user $who
		first=
		for step in execute next complete; do
			tell user "<iq type='set' id='$who$step' to='proxy.localhost'>
				<command xmlns='http://jabber.org/protocol/commands' node='setup'
				action='$step'/></iq>"
			await grep -l "id='$who$step'" "$dir/a.out" "$dir/b.out" "$dir/c.out"
			r=$(cd "$dir" && grep -l "id='$who$step'" a.out b.out c.out)
			[ "${first:=$r}" = "$r" ]
			r=${r%.out}
			hear "$r" "id='$who$step'"
			tell "$r" "<iq type='result' id='$who$step' to='proxy.localhost/user@localhost/$who'>
				<command xmlns='http://jabber.org/protocol/commands' node='setup'
				sessionid='1' status='executing'/></iq>"
			hear user "id='$who$step'" "type='result'"
		done
		met="$met$first "
		cut_off user
	done
	# all at the same one: a chance of one in 2187
	[ "$(echo "$met" | tr ' ' '\n' | grep . | sort -u | wc -l)" -gt 1 ]
}

# A slow worker gets what it can answer, not its share.
least_busy_spares_the_slow() {
	prosody
	proxy choice=LEASTBUSY
	services a
	build_peer
	peer worker "$c2s" service localhost b 1
	peer worker "$c2s" service localhost c 1
	peer worker "$c2s" service localhost s 20
	await sh -c "[ \$(grep -c joined '$log') = 4 ]"
	tell a "<presence type='unavailable'/>"
	logged "left: service@localhost/a: 3 online"
	begun=$(date +%s%N)
	"$peer" asker "$c2s" user x proxy.localhost 1000 9 >"$dir/least"
	took=$(($(date +%s%N) - begun))
	stop
	log=$dir/random.log
	: >"$log"
	proxy
	log=$dir/proxy.log
	await sh -c "[ \$(grep -c joined '$log') = 7 ]"
	begun=$(date +%s%N)
	"$peer" asker "$c2s" user x proxy.localhost 1000 9 >"$dir/random"
	random=$(($(date +%s%N) - begun))
	cat "$dir/least" "$dir/random"
	echo "least busy took $((took * 100 / random)) % of the time of random"
	awk '$3 != 1000 { exit 1 } NR == 1 { least = $12 + 0 } NR == 2 { random = $12 + 0 }
	END { exit !(least * 2 < random && least < 200) }' "$dir/least" "$dir/random"
}

chat_on_prosody() {
	chat prosody
}

chat_on_ejabberd() {
	chat ejabberd
}

# Where mod_client_proxy was: the subscription in the roster of the target is kept
# as Jitsi's installation made it, so nobody has to do anything; what a requester
# and the client see is as it was.
from_mod_client_proxy() {
	cat >"$dir/mod_subscribe.lua" <<-\E
	local rostermanager = require "core.rostermanager";
	local proxy, user, host = "focus.meet.example", "focus", module.host;
	rostermanager.set_contact_pending_in(user, host, proxy);
	rostermanager.subscribed(user, host, proxy);
	E
	hosts='VirtualHost "meet.example"
		authentication = "anonymous"
	VirtualHost "auth.meet.example"
		modules_enabled = { "subscribe" }
	Component "focus.meet.example"
		component_secret = "secret"'
	prosody
	login focus focus focus auth.meet.example
	tell focus "<presence/>"
	proxy domain='"focus.meet.example"' target='"focus@auth.meet.example"' prefix='"focus"'
	logged "subscribed: focus@auth.meet.example"
	logged "joined: focus@auth.meet.example/focus: 1 online"
	login guest '' '' meet.example
	tell guest "<iq type='set' id='1' to='focus.meet.example'>
		<conference xmlns='http://jitsi.org/protocol/focus' room='r@x'/></iq>"
	hear focus "<iq" "type='set'" "id='1'" "from='focus.meet.example/$jid'" \
	    "to='focus@auth.meet.example/focus'" "room='r@x'"
	tell focus "<iq type='result' id='1' to='focus.meet.example/$jid'>
		<conference xmlns='http://jitsi.org/protocol/focus' ready='true'/></iq>"
	hear guest "<iq" "type='result'" "id='1'" "from='focus.meet.example'" "ready='true'"
	hush focus "type='subscribe'"
	tell focus "<iq type='get' id='r'><query xmlns='jabber:iq:roster'/></iq>"
	hear focus "id='r'" "jid='focus.meet.example'"
}

# Two copies: the second waits and takes over when the first dies.
a_second_copy_stands_by() {
	prosody
	proxy backoffmax=2
	services a
	build_peer
	peer worker "$c2s" service localhost b
	logged "joined.*/b: 2 online"
	tell a "<presence type='unavailable'/>"
	first=$proxypid
	mv "$log" "$log.first"
	proxy backoffmax=2
	logged "disconnected: conflict"
	login user x
	ask user before
	hear user "type='result'" "id='before'"
	end "$first" 9
	logged "online: "
	logged "joined: service@localhost/b: 1 online"
	ask user after
	hear user "type='result'" "id='after'"
	# and back again
	second=$proxypid
	mv "$log" "$log.second"
	proxy backoffmax=2
	logged "disconnected: conflict"
	third=$proxypid
	proxypid=$second
	stop
	proxypid=$third
	logged "joined: service@localhost/b: 1 online"
	ask user again
	hear user "type='result'" "id='again'"
}

# The component on one node of a cluster, resources and requesters on both; then
# the other node dies.
a_cluster_of_two_nodes() {
	build_peer
	ERL_EPMD_PORT=$(freeport) ERL_EPMD_ADDRESS=127.0.0.1
	export ERL_EPMD_PORT ERL_EPMD_ADDRESS
	background epmd
	await listening "$ERL_EPMD_PORT"
	ejabberd one
	one=$c2s
	died=$serverpids
	c2s=$(freeport) cport=$(freeport)
	ejabberd two one
	proxy patience=2
	services a
	peer worker "$one" service localhost b
	logged "joined: service@localhost/b"
	peer worker "$c2s" service localhost c
	logged "joined: service@localhost/c"
	tell a "<presence type='unavailable'/>"
	logged "left: service@localhost/a: 2 online"
	"$peer" asker "$one" user x proxy.localhost 500 >"$dir/asked" &
	asker=$!
	"$peer" asker "$c2s" other y proxy.localhost 500 >"$dir/asked.two"
	wait $asker
	cat "$dir/asked" "$dir/asked.two"
	grep -c " 500 answered.* b [1-9].* c [1-9]" "$dir/asked"
	grep -c " 500 answered.* b [1-9].* c [1-9]" "$dir/asked.two"
	# nobody tells us of the resource that dies with its node
	end "$died" 9
	"$peer" asker "$c2s" other z proxy.localhost 500 >"$dir/died" || :
	cat "$dir/died"
	grep " 0 twice" "$dir/died"
	logged "left: service@localhost/b: 1 online"
	"$peer" asker "$c2s" other z proxy.localhost 500 >"$dir/after"
	cat "$dir/after"
	grep " 500 answered" "$dir/after"
}

# The run scripts of the man page, as they are there. The account to which they
# change, which only root could do, is the one that runs the test.
runit_runs_it() {
	need runsv runit
	configure
	mkdir -p "$dir/bin" "$dir/service/log" "$dir/var"
	cp "$bin" "$dir/bin"
	cat >"$dir/bin/chpst" <<-\E
	#!/bin/sh
	[ "$1 $2" = "-u _client_proxy" ] || exit 1
	shift 2
	exec "$@"
	E
	chmod +x "$dir/bin/chpst"
	for n in 1 2; do
		awk -v n=$n '/^#!\/bin\/sh/ { k++ } /^\.Ed/ { on = 0 } /^#!/ { on = k == n } on' \
		    client_proxy.1 | sed "s|/var/log/client_proxy|$dir/var|" >"$dir/run$n"
	done
	cat "$dir/run1" "$dir/run2"
	mv "$dir/run1" "$dir/service/run"
	mv "$dir/run2" "$dir/service/log/run"
	printf '#!/bin/sh\necho "%s" >>%s/ended\n' \$1 "$dir" >"$dir/service/finish"
	chmod +x "$dir/service/run" "$dir/service/log/run" "$dir/service/finish"
	echo s2000 >"$dir/var/config"
	serve
	PATH=$dir/bin:$PATH background runsv "$dir/service"
	log=$dir/var/current
	welcome
	logged "client_proxy: online"
	[ "$(stat -c %u "/proc/$(cat "$dir/service/supervise/pid")")" != 0 ]
	kill -9 "$(cat "$dir/service/supervise/pid")"
	cut_off srv
	serve
	welcome
	await sh -c "[ \$(grep -c 'client_proxy: online' '$log') = 2 ]"
	i=0
	while [ $i -lt 60 ]; do
		deliver iq result nobody@h/r proxy.localhost "id='$i'/"
		i=$((i + 1))
	done
	await sh -c "ls '$dir/var' | grep '^@'"
	sv -v -w 5 down "$dir/service"
	sv status "$dir/service" | grep "^down"
	# killed by a signal at first, then it ended well
	[ "$(tr '\n' ' ' <"$dir/ended")" = "-1 0 " ]
	cat "$dir"/var/@* "$log" | grep "stopping: signal"
	sv exit "$dir/service"
	await gone "$pid"
}

# ---- tests: over TLS ----

a_week_on_ejabberd_with_tls() {
	TLS=own
	week ejabberd
}

tls_with_each_kind_of_key() {
	TLS=front
	for kind in "rsa:2048" "ec -pkeyopt ec_paramgen_curve:P-256" "ec -pkeyopt ec_paramgen_curve:P-384"; do
		rm -f "$dir"/server.* "$dir/front.log"
		certificate server "$kind"
		scripted
		logged "online: proxy.localhost at 127.0.0.1 port $tport with TLS"
		deliver iq get u@h/r proxy.localhost
		hear srv "to='service@localhost/a'"
		stop
		hear srv "</stream:stream>"
		end "$frontpid"
	done
}

tls_with_a_pin_of_any_spelling() {
	TLS=front
	certificate server
	lower=$(echo "$pin" | tr A-F a-f | tr -d :)
	other=$(echo "$pin" | tr 0-9A-F 1-9A-F0)
	for p in "$lower" "$other,$pin" "$lower $other" ",$other , $lower,"; do
		serve
		proxy tlspin="\"$p\""
		welcome
		stop
	done
	unlogged disconnected
}

# A new certificate is announced before it is used.
tls_renewal() {
	TLS=front
	certificate new
	new=$pin
	certificate server
	scripted tlspin="\"$pin $new\"" backoffmax=1
	end "$frontpid"
	cut_off srv
	logged "disconnected: "
	serve
	front new
	welcome
	[ "$(grep -c "online: .* with TLS" "$log")" = 2 ]
}

# What is wrong, and what one reads then. Nothing of the stream goes out.
tls_refused() {
	TLS=front
	certificate other
	other=$pin
	certificate server
	serve
	proxy tlspin="\"$other\"" backoffmax=1 patience=1
	logged "disconnected: the server's certificate is not in tlspin, it is $pin$"
	[ "$(wc -c <"$dir/srv.out")" = 0 ]
	end "$frontpid"
	# a port without TLS: one that answers, one that does not
	cat >"$dir/plain" <<-\E
	#!/bin/sh
	echo "<?xml version='1.0'?><stream:stream id='1'><stream:error>"
	head -c 20 >/dev/null
	E
	chmod +x "$dir/plain"
	background socat "TCP-LISTEN:$tport,bind=127.0.0.1,reuseaddr,fork" "EXEC:$dir/plain"
	logged "disconnected: the server does not speak TLS 1.2"
	end "$pid"
	background socat -u "TCP-LISTEN:$tport,bind=127.0.0.1,reuseaddr,fork" "OPEN:$dir/silent,creat,append"
	logged "disconnected: the server does not answer the handshake in time"
	LC_ALL=C grep -c "stream" "$dir/silent" && return 1
	end "$pid"
	background socat "TCP-LISTEN:$tport,bind=127.0.0.1,reuseaddr,fork" \
	    "SYSTEM:head -c 9 >/dev/null"
	logged "disconnected: the server has cut the TLS handshake"
	end "$pid"
	front server ",openssl-min-proto-version=TLS1.3"
	grep -v "does not speak TLS" "$log" >"$log.new"
	cat "$log.new" >"$log"
	logged "disconnected: the server does not speak TLS 1.2"
	end "$frontpid"
	front server ",cipher=AES128-SHA"
	logged "disconnected: the server ends TLS with alert 40"
	end "$frontpid"
	unlogged online
}

# The connection is cut, or changed on its way, once all is well.
tls_cut() {
	TLS=front
	build_peer
	scripted backoffmax=1
	kill -9 "$(tr -d ' ' <"/proc/$frontpid/task/$frontpid/children")"
	logged "disconnected: the connection was cut, TLS did not end"
	end "$frontpid"
	cut_off srv
	stop
	# a port between us and the server's
	serve
	near=$(freeport)
	background "$peer" tamper "$near" "$tport"
	tamper=$pid
	front server
	proxy port="\"$near\"" backoffmax=1
	welcome
	online b
	logged "joined: service@localhost/b"
	kill -USR1 "$tamper"
	deliver iq get u@h/r proxy.localhost
	logged "disconnected: TLS failed: error 7 of BearSSL"
	await gone "$tamper"
}

tls_name() {
	TLS=front
	serve
	end "$(cat "$dir/srv.pid")"
	background socat -u "TCP-LISTEN:$tport,bind=127.0.0.1,reuseaddr,fork" "OPEN:$dir/hello,creat,append"
	touch "$dir/front.log"
	proxy host='"localhost"' patience=1
	await grep -c localhost "$dir/hello"
	stop
	rm "$dir/hello"
	proxy patience=1
	await [ -s "$dir/hello" ]
	grep 127.0.0.1 "$dir/hello" && return 1
	return 0
}

tls_under_load() {
	TLS=front
	thousands_at_once
	# half a megabyte there and back
	{
		printf %s "<iq type='set' id='big' from='u@h/r' to='proxy.localhost'><q>"
		bytes 524000 x
		printf %s "</q></iq><iq type='get' id='last' from='u@h/r' to='proxy.localhost'/>"
	} >"$dir/srv.in"
	await grep -q "id='last'" "$dir/srv.out"
	[ "$(tr -cd x <"$dir/srv.out" | wc -c)" -ge 524000 ]
	unlogged disconnected
}

# ---- tests: on a scripted server ----

nothing_else_is_rewritten() {
	scripted
	kept "" "/>"
	kept " xml:lang='de' x:y='1' xmlns:x='urn:x' z=''" "/>"
	kept "" "><a xmlns='urn:a' b='c'><d xmlns=''/>text<e/>more</a> <b/></iq>"
	kept "" "><p:a xmlns:p='urn:p' p:b='1'><p:c/></p:a></iq>"
	kept "" "><a></a></iq>" "><a/></iq>"
	kept "" "><a>  &amp; &lt; > ]]&gt; &#13; ' \"
	</a></iq>"
	kept "" "><a b='&amp;&lt;>&#13;&#10;&#9; '/></iq>"
	kept "" "><a b='\"\"'/></iq>"
	kept "" "><a b=\"&quot;'&quot;\"/></iq>" "><a b='\"&apos;\"'/></iq>"
	kept "" "><a b=\"'''&quot;\"/></iq>"
	kept "" "><a b=\"&quot;&quot;'\"/></iq>" "><a b='\"\"&apos;'/></iq>"
	kept "" ">></iq>"
	kept "" "><a b='&apos;&apos;'/></iq>" "><a b=\"''\"/></iq>"
	kept "" "><a>&gt;&apos;&quot;&#x20AC;</a></iq>" "><a>>'\"€</a></iq>"
	kept "" "><a><![CDATA[<b>]]]]><![CDATA[>]]></a></iq>" "><a>&lt;b>]]&gt;</a></iq>"
	kept "" "><a b='€🙂ß'>€🙂ß</a></iq>"
	deep=$(printf '<a>%.0s' $(seq 2000))$(printf '</a>%.0s' $(seq 2000))
	kept "" ">$deep</iq>" ">$(echo "$deep" | sed 's|<a></a>|<a/>|')</iq>"
	wide=$(printf '<a b="c"/>%.0s' $(seq 2000) | tr '"' "'")
	kept "" ">$wide</iq>"
	# jabberd2's
	tell srv "<iq xmlns='jabber:client' type='get' id='j' from='u@h/r'
		to='proxy.localhost'><q xmlns='jabber:client'/></iq>"
	hear srv "<iq type='get' id='j' .*><q xmlns='jabber:client'/></iq>"
	(cat "$dir/srv.out" && echo "</stream:stream>") | xmlwf | grep . && return 1
	unlogged dropped
	# prefixes that the server's header declares, but not the stanza itself
	stop
	decl="xmlns:s='urn:from-the-stream' xmlns:t='urn:t'"
	scripted
	kept "" "><s:a/></iq>" " $decl><s:a/></iq>"
	own="xmlns:s='urn:own'><s:a t:b=''/></iq>"
	kept "" " $own" " xmlns:t='urn:t' $own"
}

resources_of_any_spelling() {
	scripted
	tell srv "<presence type='unavailable' from='service@localhost/a' to='proxy.localhost'/>"
	long=$(printf '%01023d' 0)
	for r in "it&apos;s" '&quot;x&quot;' '&amp;&lt;&gt;' 'a b' '€🙂' '/' 'x/y@z' "$long"; do
		online "$r"
		logged "joined: .*: 1 online"
		deliver iq get u@h/r proxy.localhost
		want=$(echo "$r" | sed "s/&quot;/\"/g;s/&gt;/>/g")
		case $r in
		*apos*) want="to=\"service@localhost/it's\"" ;;
		*) want="to='service@localhost/$want'" ;;
		esac
		await has_written "<iq type='get' id='1' from='proxy.localhost/u@h/r' $want/>"
		deliver iq result "service@localhost/$r" proxy.localhost/u@h/r
		hear srv "<iq type='result' id='1' from='proxy.localhost' to='u@h/r'/>"
		tell srv "<presence type='unavailable' from='service@localhost/$r' to='proxy.localhost'/>"
		await sh -c "tail -n 1 '$log' | grep -q 'left: .*: 0 online'"
	done
	online "1$long" a
	logged "ignored: "
	logged "joined: service@localhost/a: 1 online"
}

byte_by_byte() {
	build_peer
	serve
	proxy
	welcome
	{
		echo "<presence from='service@localhost/a' to='proxy.localhost'/>"
		i=0
		while [ $i -lt 20 ]; do
			i=$((i + 1))
			printf %s "<iq type='get' id='b$i' from='u&amp;&apos;@h/ü' to='proxy.localhost'>
				<a b='&lt;ü>'>]]&gt;ü<![CDATA[<]]></a></iq>"
		done
	} | "$peer" drip >"$dir/srv.in"
	hear srv "<iq type='get' id='b20' from=\"proxy.localhost/u&amp;'@h/%C3%BC\".*<a b='&lt;ü>'>]]&gt;ü&lt;</a></iq>"
	[ "$(stanzas <"$dir/srv.out" | grep -c "<iq type='get'")" = 20 ]
}

# Each line of the tables, without and with a node; nothing else comes out.
relayed_as_the_table_says() {
	scripted relay=1
	for at in proxy.localhost room@proxy.localhost; do
		news
		a=service@localhost/a
		deliver message chat u@h/r $at "id='1'><body>x</body></message"
		deliver message "" u@h $at "id='2'/"
		deliver message error u@h/r $at "id='3'/"
		deliver message chat $a $at/u@h/r "id='4'/"
		deliver message error $a $at/u@h/%C3%A9 "id='5'/"
		deliver iq get $a $at/u@h/r "id='6'/"
		deliver iq result u@h/r $at/$a "id='6'/"
		deliver iq set $a $at/u@h/é "id='7'/"
		deliver iq error u@h/é $at/$a "id='7'/"
		deliver message error u@h/r $at/$a "id='8'/"
		deliver iq get u@h/r $at "id='9'/"
		deliver iq result $a $at/u@h/r "id='9'/"
		hear srv "id='9' from='$at' to='u@h/r'"
		news
		[ "$news" = "<message type='chat' id='1' from='$at/u@h/r' to='$a'><body>x</body></message>
<message id='2' from='$at/u@h' to='$a'/>
<message type='error' id='3' from='$at/u@h/r' to='$a'/>
<message type='chat' id='4' from='$at' to='u@h/r'/>
<message type='error' id='5' from='$at' to='u@h/é'/>
<iq type='get' id='6' from='$at/$a' to='u@h/r'/>
<iq type='result' id='6' from='$at/u@h/r' to='$a'/>
<iq type='set' id='7' from='$at/$a' to='u@h/é'/>
<iq type='error' id='7' from='$at/u@h/%C3%A9' to='$a'/>
<message type='error' id='8' from='$at/u@h/r' to='$a'/>
<iq type='get' id='9' from='$at/u@h/r' to='$a'/>
<iq type='result' id='9' from='$at' to='u@h/r'/>" ]
	done
	unlogged dropped
	kill -USR1 "$proxypid"
	logged "counted: 6 requests, 0 untracked, 6 answers, 0 late, 12 messages.* 0 open"
}

# Strangers reach nobody but the target, and only as the table says; the target's
# client reaches neither itself nor us.
no_way_around_the_table() {
	scripted relay=1
	for y in victim@h/r victim@h service@localhost service@localhost/ service@localhostx/a \
	    service@localhost.evil/a xservice@localhost/a proxy.localhost/victim@h \
	    proxy.localhost/service@localhost/a %zz victim@h%2Fr victim@h%00/r; do
		for from in u@h/r service@localhostx/a service@localhost.evil/a xservice@localhost/a localhost; do
			deliver message chat $from "proxy.localhost/$y"
			deliver message error $from "proxy.localhost/$y"
			deliver message groupchat $from "proxy.localhost/$y"
			for type in get set result error; do
				deliver iq $type $from "proxy.localhost/$y"
			done
			deliver presence "" $from "proxy.localhost/$y" /
		done
	done
	for type in get set; do
		deliver iq $type u@h/r proxy.localhost/service@localhost/a
	done
	deliver message chat u@h/r proxy.localhost/service@localhost/a
	for y in service@localhost/a service@localhost/b service@localhost proxy.localhost \
	    room@proxy.localhost/victim@h %zz; do
		deliver message chat service@localhost/a "proxy.localhost/$y"
		deliver message error service@localhost/a "proxy.localhost/$y"
		deliver iq get service@localhost/a "proxy.localhost/$y"
		deliver presence "" service@localhost/a "proxy.localhost/$y" /
	done
	deliver message chat service@localhost/a proxy.localhost
	deliver iq get service@localhost/a proxy.localhost
	deliver iq get service@localhost proxy.localhost/victim@h
	deliver iq get u@h/r proxy.localhost "id='end'/"
	hear srv "id='end'.*to='service@localhost/a'"
	news
	# all that came out are errors to the sender
	echo "$news" | sed '1,/type=.subscribe/d;$d' >"$dir/bounced"
	wc -l <"$dir/bounced"
	[ "$(wc -l <"$dir/bounced")" = $((12 * 5 * 4 + 3 + 6 * 2 + 3)) ]
	! grep -v "<\(iq\|message\) type='error' id='1' from='proxy.localhost[^']*' to='\(u@h/r\|service@localhostx/a\|service@localhost.evil/a\|xservice@localhost/a\|localhost\|service@localhost/a\|service@localhost\)'><error type='cancel'><\(service-unavailable\|feature-not-implemented\) " "$dir/bounced"
}

messages_for_nobody() {
	scripted relay=1
	tell srv "<presence type='unavailable' from='service@localhost/a' to='proxy.localhost'/>"
	logged "0 online"
	news
	b="<body>hi</body>"
	state="<composing xmlns='http://jabber.org/protocol/chatstates'/>"
	receipt="<received xmlns='urn:xmpp:receipts' id='7'/>"
	marker="<displayed id='7' xmlns='urn:xmpp:chat-markers:0'/>"
	for quiet in "$state" "$receipt" "$marker" "<thread>t</thread>$state$marker"; do
		deliver message chat u@h/r proxy.localhost "id='q'>$quiet</message"
	done
	deliver message headline u@h/r proxy.localhost "id='q'>$b</message"
	deliver message error u@h/r proxy.localhost "id='q'>$b</message"
	news
	[ -z "$news" ]
	for loud in "$b" "$b$state" "<x xmlns='jabber:x:conference'/>" "" "<received xmlns='x'/>"; do
		deliver message chat u@h/r room@proxy.localhost "id='l'>$loud</message"
		news
		[ "$news" = "<message type='error' id='l' from='room@proxy.localhost' to='u@h/r'><error type='wait'><recipient-unavailable xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></message>" ]
	done
	online a
	logged "joined.*1 online"
	for copy in sent received; do
		copy="<$copy xmlns='urn:xmpp:carbons:2'><forwarded xmlns='urn:xmpp:forward:0'/></$copy>"
		deliver message chat service@localhost proxy.localhost/u@h/r "id='c'>$copy</message"
		deliver message chat u@h/r proxy.localhost "id='c'>$copy</message"
	done
	hush srv "id='c'"
	deliver message chat u@h/r proxy.localhost "id='d'>$receipt</message"
	hear srv "id='d'.*to='service@localhost/a'"
	# too long an address, too large a message
	deliver message chat "u@h/$(bytes 1023 x)" proxy.localhost "id='e'/"
	hear srv "<message type='error' id='e'.*<not-acceptable"
	deliver message error "u@h/$(bytes 1023 x)" proxy.localhost "id='f'/"
	{
		printf %s "<message id='g' from='u@h/r' to='proxy.localhost'><body>"
		bytes 600000 x
		printf %s "</body></message>"
	} >"$dir/srv.in"
	hear srv "<message type='error' id='g'.*<policy-violation"
	hush srv "id='f'"
}

# The client's requests are answered, too, and do not depend on others' presence.
the_clients_requests_get_an_answer() {
	scripted relay=1 answertime=2
	deliver iq get service@localhost/a proxy.localhost/u@h/r "id='1'/"
	hear srv "<iq type='get' id='1' from='proxy.localhost/service@localhost/a' to='u@h/r'/>"
	online b
	tell srv "<presence type='unavailable' from='service@localhost/b' to='proxy.localhost'/>"
	tell srv "<presence type='unavailable' from='service@localhost' to='proxy.localhost'/>"
	logged ": 0 online"
	hush srv "<iq type='error'"
	hear srv "<iq type='error' id='1' from='proxy.localhost/u@h/r' to='service@localhost/a'><error type='wait'><remote-server-timeout"
	logged "timed out: request of service@localhost/a to proxy.localhost/u@h/r, and"
	deliver iq result u@h/r proxy.localhost/service@localhost/a
	hush srv "<iq type='result'"
	kill -USR1 "$proxypid"
	logged " 1 late.* 0 open"
}

requests_of_who_leaves_are_answered() {
	scripted
	for i in 1 2 3; do
		deliver iq get u@h/r proxy.localhost "id='$i'/"
		hear srv "id='$i'"
	done
	deliver iq get u@h/r room@proxy.localhost "id='it&apos;s &amp; 4'/"
	hear srv "from='room@proxy.localhost/u@h/r'"
	online b
	logged "2 online"
	# an update, and the departure of others, are none
	tell srv "<presence from='service@localhost/a' to='proxy.localhost'><show>away</show></presence>"
	tell srv "<presence type='unavailable' from='service@localhost/b' to='proxy.localhost'/>"
	online b c
	deliver iq result service@localhost/a proxy.localhost/u@h/r "id='2'/"
	hear srv "<iq type='result' id='2'"
	news
	tell srv "<presence type='unavailable' from='service@localhost/a' to='proxy.localhost'/>"
	logged "failed: 3 requests"
	news
	[ "$news" = "$(failed_with recipient-unavailable 1 proxy.localhost
		failed_with recipient-unavailable 3 proxy.localhost
		failed_with recipient-unavailable 4 room@proxy.localhost |
		    sed "s/id='4'/id=\"it's \&amp; 4\"/")" ]
	# what its server or itself says after that would be a second answer
	deliver iq error service@localhost/a proxy.localhost/u@h/r "id='1'/"
	deliver iq result service@localhost/a proxy.localhost/u@h/r "id='3'/"
	# nothing is known of this one, so it passes
	deliver iq result service@localhost/a proxy.localhost/u@h/r "id='5'/"
	news
	[ "$news" = "<iq type='result' id='5' from='proxy.localhost' to='u@h/r'/>" ]
	# the last resource in the table has moved to the place of one that left
	for i in 6 7 8 9; do
		deliver iq get u@h/r proxy.localhost "id='$i'/"
	done
	news
	b=$(echo "$news" | grep -c "localhost/b") || :
	tell srv "<presence type='unavailable' from='service@localhost/b' to='proxy.localhost'/>"
	news
	[ "$(echo "$news" | grep -c recipient-unavailable)" = "$b" ]
	tell srv "<presence type='unavailable' from='service@localhost' to='proxy.localhost'/>"
	news
	[ "$(echo "$news" | grep -c recipient-unavailable)" = $((4 - b)) ]
	for how in error unsubscribed; do
		online a
		deliver iq get u@h/r proxy.localhost "id='$how'/"
		hear srv "id='$how'"
		news
		deliver presence $how service@localhost proxy.localhost "id='$(last_ask)'/"
		news
		[ "$(echo "$news" | head -n 1)" = "$(failed_with recipient-unavailable $how proxy.localhost)" ]
	done
	kill -USR1 "$proxypid"
	logged "2 late.* 9 recipient-unavailable.* 0 online, 0 open"
}

requests_wait_only_so_long() {
	scripted answertime=1
	deliver iq get u@h/r proxy.localhost "id='1'/"
	hear srv "id='1'"
	deliver iq get u@h/r proxy.localhost "id='2'/"
	deliver iq result service@localhost/a proxy.localhost/u@h/r "id='2'/"
	hear srv "<iq type='result' id='2'"
	news
	sleep 1
	news
	[ "$news" = "$(failed_with remote-server-timeout 1 proxy.localhost)" ]
	logged "timed out: request of u@h/r to proxy.localhost at a, and"
	deliver iq result service@localhost/a proxy.localhost/u@h/r "id='1'/"
	news
	[ -z "$news" ]
	stop
	scripted answertime=0
	deliver iq get u@h/r proxy.localhost "id='1'/"
	sleep 1.5
	hush srv timeout
}

alike_requests_get_an_answer_each() {
	scripted
	online b
	logged "2 online"
	while ! { grep -q "to='service@localhost/a'" "$dir/srv.out" &&
	    grep -q "to='service@localhost/b'" "$dir/srv.out"; }; do
		deliver iq get u@h/r proxy.localhost
		news
	done
	n=$(grep -o "type='get' id='1' from='proxy.localhost/u@h/r' to='service@localhost/a'" "$dir/srv.out" | wc -l)
	m=$(grep -o "type='get' id='1' from='proxy.localhost/u@h/r' to='service@localhost/b'" "$dir/srv.out" | wc -l)
	kill -USR1 "$proxypid"
	logged "resource: service@localhost/a: $n open"
	deliver iq result service@localhost/b proxy.localhost/u@h/r
	hear srv "<iq type='result' id='1'"
	kill -USR1 "$proxypid"
	logged "resource: service@localhost/b: $((m - 1)) open"
	news
	tell srv "<presence type='unavailable' from='service@localhost' to='proxy.localhost'/>"
	news
	[ "$(echo "$news" | grep -c recipient-unavailable)" = $((n + m - 1)) ]
}

a_full_table_sheds_load() {
	scripted MAXREQUESTS=4 REQUESTSIZE=100
	for i in 1 2 3 4; do
		deliver iq get u@h/r proxy.localhost "id='$i'/"
		hear srv "<iq type='get' id='$i'"
	done
	for i in 5 6; do
		deliver iq get u@h/r proxy.localhost "id='$i'/"
		hear srv "<iq type='error' id='$i'.*<error type='wait'><resource-constraint"
	done
	deliver iq result service@localhost/a proxy.localhost/u@h/r "id='2'/"
	deliver iq get u@h/r proxy.localhost "id='7'/"
	hear srv "<iq type='get' id='7'"
	deliver iq get u@h/r proxy.localhost "id='8'/"
	hear srv "<iq type='error' id='8'.*<resource-constraint"
	[ "$(grep -c "busy: 4 requests are open" "$log")" = 1 ]
	# room again: a new episode, after most have been answered
	for i in 1 3 4 7; do
		deliver iq result service@localhost/a proxy.localhost/u@h/r "id='$i'/"
		hear srv "<iq type='result' id='$i'"
	done
	for i in 9 10 11 12 13; do
		deliver iq get u@h/r proxy.localhost "id='$i'/"
	done
	hear srv "<iq type='error' id='13'.*<resource-constraint"
	[ "$(grep -c "busy: 4 requests are open" "$log")" = 2 ]
	# what has been answered with an error makes room at once
	tell srv "<presence type='unavailable' from='service@localhost/a' to='proxy.localhost'/>"
	online b
	for i in 14 15 16 17; do
		deliver iq get u@h/r proxy.localhost "id='$i'/"
		hear srv "<iq type='get' id='$i'.*service@localhost/b"
	done
	for i in 14 15 16 17; do
		deliver iq result service@localhost/b proxy.localhost/u@h/r "id='$i'/"
		hear srv "<iq type='result' id='$i'"
	done
	# what cannot be kept in mind counts, too
	x=$(bytes 100 x)
	for i in 1 2 3 4; do
		deliver iq get u@h/r proxy.localhost "id='$x$i'/"
		hear srv "<iq type='get' id='$x$i'"
	done
	deliver iq get u@h/r proxy.localhost "id='${x}5'/"
	hear srv "<iq type='error' id='${x}5'.*<resource-constraint"
	deliver iq result service@localhost/b proxy.localhost/u@h/r "id='${x}1'/"
	hear srv "<iq type='result' id='${x}1'"
	[ "$(grep -c "untracked: " "$log")" = 1 ]
	news
	tell srv "<presence type='unavailable' from='service@localhost/b' to='proxy.localhost'/>"
	news
	[ -z "$news" ]
	kill -USR1 "$proxypid"
	logged " 4 untracked,.* 5 resource-constraint, 4 recipient-unavailable"
}

# Errors that the out buffer has no room for wait their turn.
many_fail_at_once() {
	scripted OUTSIZE=550000
	x=$(bytes 400 x)
	awk -v x="$x" 'BEGIN {
		for (i = 0; i < 4000; i++)
			printf "<iq type=\"get\" id=\"%d\" from=\"u@h/%s\" to=\"proxy.localhost\"/>", i, x
		print "<presence type=\"unavailable\" from=\"service@localhost\" to=\"proxy.localhost\"/>"
		print "<presence from=\"service@localhost/b\" to=\"proxy.localhost\"/>"
		for (i = 4000; i < 6000; i++)
			printf "<iq type=\"get\" id=\"%d\" from=\"u@h/%s\" to=\"proxy.localhost\"/>", i, x
		printf "<iq type=\"get\" id=\"last\" from=\"u@h/r\" to=\"proxy.localhost\"/>"
	}' >"$dir/srv.in"
	await grep -q "'last'" "$dir/srv.out"
	await sh -c "[ \$(grep -o '<recipient-unavailable' '$dir/srv.out' | wc -l) -ge 4000 ]"
	sed 's/<iq/\n&/g' "$dir/srv.out" | sed -n "s/<iq type='error' id='\([0-9]*\)'.*recipient-unavailable.*/\1/p" |
	    sort -n >"$dir/failed"
	seq 0 3999 | cmp - "$dir/failed"
	unlogged disconnected
}

# They cannot be answered any more; what is answered later passes as ever.
requests_do_not_survive_the_connection() {
	scripted
	deliver iq get u@h/r proxy.localhost
	hear srv "<iq type='get'"
	cut_off srv
	logged disconnected
	serve
	welcome
	online b
	logged "joined: service@localhost/b: 1 online"
	tell srv "<presence type='unavailable' from='service@localhost/a' to='proxy.localhost'/>"
	hush srv recipient
	deliver iq result service@localhost/a proxy.localhost/u@h/r
	hear srv "<iq type='result' id='1' from='proxy.localhost' to='u@h/r'/>"
	kill -USR1 "$proxypid"
	logged "0 late.*0 open"
}

only_who_must_moves() {
	scripted choice=STICKY MAXREQUESTS=100000
	online b c d e f g h i j
	logged "joined: .*: 10 online"
	ask_for_many ten
	ask_for_many again
	cmp "$dir/ten" "$dir/again"
	# about a thousand each
	cut -d' ' -f2 "$dir/ten" | sort | uniq -c |
	    awk '{ print } $1 < 850 || $1 > 1150 { bad = 1 } END { exit bad || NR != 10 }'
	tell srv "<presence type='unavailable' from='service@localhost/c' to='proxy.localhost'/>"
	logged "left: service@localhost/c"
	ask_for_many nine
	join "$dir/ten" "$dir/nine" | awk '$2 != $3 { moved++ }
	    ($2 != $3) != ($2 == "service@localhost/c") { bad = 1 }
	    END { print moved " moved"; exit bad || !moved }'
	online c
	logged "joined: service@localhost/c: 10 online"
	ask_for_many back
	cmp "$dir/ten" "$dir/back"
	online k
	logged "joined: service@localhost/k"
	ask_for_many eleven
	join "$dir/ten" "$dir/eleven" | awk '$2 != $3 { moved++ }
	    $2 != $3 && $3 != "service@localhost/k" { bad = 1 }
	    END { print moved " moved"; exit bad || moved < 750 || moved > 1070 }'
	# nor does a restart move anybody
	stop
	scripted choice=STICKY MAXREQUESTS=100000
	online k j i h g f e d c b
	logged "joined: .*: 11 online"
	ask_for_many restarted
	cmp "$dir/eleven" "$dir/restarted"
}

thousands_at_once() {
	scripted MAXREQUESTS=6000
	seq 5000 | sed "s|.*|<iq type='get' id='n&' from='u@h/r' to='proxy.localhost'><q/></iq>|" \
	    >"$dir/many"
	cat "$dir/many" >"$dir/srv.in"
	await grep -q "id='n5000'" "$dir/srv.out"
	stanzas <"$dir/srv.out" | sed -n "s/.*id='n\\([0-9]*\\)'.*/\\1/p" >"$dir/ids"
	seq 5000 | cmp - "$dir/ids"
}

strangers_presence() {
	scripted
	deliver presence subscribe x@localhost proxy.localhost /
	hear srv "<presence type='unsubscribed' from='proxy.localhost' to='x@localhost'/>"
	deliver presence probe x@localhost room@proxy.localhost /
	hear srv "<presence type='unsubscribed' from='room@proxy.localhost' to='x@localhost'/>"
	for f in x@localhost/a service@localhostx/a xservice@localhost/b \
	    service@localhos/c service@other/d service/e localhost/f; do
		for t in '' unavailable subscribed unsubscribed unsubscribe error; do
			deliver presence "$t" "$f" proxy.localhost /
		done
	done
	deliver iq get u@h/r proxy.localhost
	hear srv "<iq type='get' .*to='service@localhost/a'"
	hush srv "<presence"
	[ "$(grep -c -e joined -e left "$log")" = 1 ]
}

the_targets_presence() {
	scripted
	hush srv "type='probe'"
	probed
	online a b c a b c
	logged "joined: service@localhost/c: 3 online"
	deliver presence unavailable service@localhost/nobody proxy.localhost /
	deliver presence unavailable service@localhost/a proxy.localhost /
	logged "left: service@localhost/a: 2 online"
	deliver presence unavailable service@localhost proxy.localhost /
	logged "left: service@localhost, all.*: 0 online"
	for f in service@localhost service@localhost/x; do
		: >"$log"
		online a b
		logged "joined: service@localhost/b: 2 online"
		deliver presence unsubscribed $f proxy.localhost /
		logged "not subscribed: service@localhost: it refuses"
		logged "left: service@localhost, all.*: 0 online"
	done
	deliver presence subscribe service@localhost proxy.localhost /
	hear srv "<presence type='subscribed' from='proxy.localhost' to='service@localhost'/>"
	hear srv "<presence from='proxy.localhost' to='service@localhost'/>"
	deliver presence probe service@localhost/a proxy.localhost /
	hear srv "<presence from='proxy.localhost' to='service@localhost/a'/>"
}

# Servers send errors when a session dies, too: only the answer to what was asked
# last denies, and an unreachable server does not.
presence_errors() {
	scripted refresh=2 patience=1
	probed
	online b
	logged "joined.*: 2 online"
	for c in "item-not-found cancel" "remote-server-not-found cancel" \
	    "remote-server-timeout wait" "resource-constraint wait"; do
		error="><error type='${c#* }'><${c% *} xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></presence"
		# from one session, or about something else
		deliver presence error service@localhost/a proxy.localhost "id='$(last_ask)'$error"
		deliver presence error service@localhost proxy.localhost "id='other'$error"
		deliver presence error service@localhost proxy.localhost "$error"
	done
	deliver iq get u@h/r proxy.localhost "id='1'/"
	hear srv "<iq type='get' id='1'"
	for c in "remote-server-not-found cancel" "resource-constraint wait"; do
		probe_is_read
		error="><error type='${c#* }'><${c% *} xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></presence"
		deliver presence error service@localhost proxy.localhost "id='$(last_ask)'$error"
		logged "unreachable: service@localhost: ${c% *}"
	done
	unlogged "left: "
	probe_is_read
	deliver presence error service@localhost proxy.localhost "id='$(last_ask)'><error
		type='cancel'><gone xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></presence"
	logged "not subscribed: service@localhost: gone"
	logged "left: service@localhost, all.*: 0 online"
}

# When a probe brings nothing, the roster may have lost us.
a_lost_subscription_is_asked_for_again() {
	scripted patience=1
	probed
	logged "unanswered: "
	hear srv "<presence type='subscribe' id='$(last_ask)'"
	# nobody is thrown out by that
	deliver iq get u@h/r proxy.localhost
	hear srv "<iq type='get' id='1' .*to='service@localhost/a'"
	probed
	online a
	sleep 1.5
	[ "$(grep -c unanswered "$log")" = 1 ]
	unlogged "left: "
}

# A fresh installation's target may know us only after our first request.
the_target_subscribes_and_is_asked_again() {
	scripted
	deliver presence unsubscribed service@localhost proxy.localhost /
	logged "not subscribed"
	deliver presence subscribe service@localhost proxy.localhost /
	hear srv "<presence type='subscribe' id='[^']*' from='proxy.localhost' to='service@localhost'/>"
}

# Presence that was lost: who does not answer two probes while others do has left.
silent_departures_are_found() {
	scripted patience=1
	online b c
	logged "joined.*: 3 online"
	probed
	online b
	# those who were silent may only be late: they are asked once more
	hear srv "<presence type='probe'"
	unlogged "left: "
	hear srv "<iq type='get' id='$(last_ask)'"
	tell srv "$heard"
	online b c
	logged "left: service@localhost/a: 2 online"
	unlogged "left: service@localhost/[bc]"
}

# Does the client not know the namespace, or has it left without a word? Its
# server would use the same word.
service_unavailable_leads_to_one_probe() {
	scripted patience=1
	probed
	online a b
	logged "joined.*: 2 online"
	sleep 1.2
	deliver iq error service@localhost/a proxy.localhost/u@h/r "id='1'><error type='cancel'>
		<item-not-found xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq"
	hush srv "<presence type='probe'"
	for r in a b; do
		for i in 1 2 3; do
			deliver iq error service@localhost/$r proxy.localhost/u@h/r "id='$r$i'><error type='cancel'>
				<service-unavailable xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq"
			hear srv "<iq type='error' id='$r$i'"
		done
		probe_is_read
		online a b
		sleep 1.2
		hush srv "<presence type='probe'"
	done
	unlogged "left: "
}

# What waits to be read is no silence, nor is what could not be written yet.
nothing_is_judged_unread() {
	scripted answertime=2 patience=1
	probed
	deliver iq get u@h/r proxy.localhost "id='1'/"
	hear srv "<iq type='get' id='1'"
	kill -STOP "$proxypid"
	online a
	deliver iq result service@localhost/a proxy.localhost/u@h/r "id='1'/"
	sleep 3
	kill -CONT "$proxypid"
	hear srv "<iq type='result' id='1'"
	unlogged "timed out"
	unlogged "left: "
	unlogged "disconnected"
}

# Nobody reads the log: nothing waits for it, and what is missing is told once
# somebody does; it ends as ever, too.
a_log_that_nobody_reads() {
	configure
	for reader in late none; do
		serve
		mkfifo "$dir/pipe.$reader"
		exec 3<>"$dir/pipe.$reader"
		# shellcheck disable=SC2086 # a command and its options, or nothing
		background ${WRAPPER-} "$bin" 2>"$dir/pipe.$reader" 3>&-
		proxypid=$pid
		welcome
		# more lines than a pipe holds
		seq 2000 | sed "s|.*|<presence from='service@localhost/&' to='proxy.localhost'/><presence type='unavailable' from='service@localhost/&' to='proxy.localhost'/>|" >"$dir/srv.in"
		online a
		deliver iq get u@h/r proxy.localhost "id='last'/"
		hear srv "<iq type='get' id='last'"
		[ $reader = none ] || {
			cat <&3 >"$dir/read" 3>&- &
			echo $! >>"$dir/pids"
			await grep "log: [0-9]* lines left out" "$dir/read"
		}
		stop
		hear srv "</stream:stream>"
	done
}

# A line for each stanza of a stranger would fill the disk.
strangers_do_not_fill_the_log() {
	scripted
	before=$(wc -l <"$log")
	awk -v x="$(bytes 3000 x)" 'BEGIN {
		for (i = 0; i < 5000; i++) {
			printf "<iq type=\"result\" id=\"1\" from=\"u@h/%s\" to=\"proxy.localhost/%s\"/>", x, x
			printf "<presence from=\"u@h/%s\" to=\"proxy.localhost\"/>", x
		}
	}' >"$dir/srv.in"
	deliver iq get u@h/r proxy.localhost "id='last'/"
	hear srv "<iq type='get' id='last'"
	logged "log: [0-9]* lines left out"
	[ $(($(wc -l <"$log") - before)) -lt 400 ]
	awk '{ n += length($0) > 511 } END { exit n }' "$log"
	logged "ignored: presence (no type) of u@h/xxx.*: the target is service@localhost"
}

asking_again() {
	scripted askmin=1 askmax=2 refresh=2 patience=1
	hear srv "type='subscribe'"
	hear srv "type='subscribe'"
	deliver presence subscribed service@localhost proxy.localhost /
	hear srv "type='probe'"
	hear srv "type='probe'"
	hear srv "type='probe'"
	hush srv "type='subscribe'"
	deliver presence unsubscribed service@localhost proxy.localhost /
	hear srv "type='subscribe'"
}

stray_answers_and_undecodable_addresses() {
	scripted
	deliver iq result x@localhost/a proxy.localhost/u@h/r
	logged "dropped: iq result from x@localhost/a"
	deliver iq result service@localhost proxy.localhost/u@h/r
	logged "dropped: iq result from service@localhost to"
	deliver iq error x@localhost/a proxy.localhost
	logged "dropped: iq error from x@localhost/a"
	for a in '' / /% /%4 /%zz /%00 /%0A /%01 /%FF /%C0%AF /%ED%A0%80 \
	    /%EF%BF%BE /%F4%90%80%80 /%C3 /a%E2%82 /%7; do
		: >"$log"
		deliver iq result service@localhost/a "proxy.localhost$a"
		logged "dropped: iq result from service@localhost/a to proxy.localhost$a:"
	done
	deliver message error u@h/r proxy.localhost
	deliver message headline u@h/r proxy.localhost
	hush srv "<iq"
	hush srv "<message"
	deliver iq result service@localhost/a "proxy.localhost/u@h/%25%41%D7%A9%f0%9f%99%82"
	hear srv "<iq type='result' id='1' from='proxy.localhost' to='u@h/%Aש🙂'/>"
	deliver iq error service@localhost/gone "r@proxy.localhost/u@h/r" \
	    "id='1'><error type='cancel'/></iq>"
	hear srv "<iq type='error' id='1' from='r@proxy.localhost' to='u@h/r'><error"
}

# RFC 6120 8.2.3; an id that is empty is one, too.
iqs_of_no_known_type() {
	scripted
	news
	bad="<error type='modify'><bad-request xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>"
	deliver iq bogus u@h/r proxy.localhost "id='1'/"
	deliver iq '' u@h/r room@proxy.localhost/x "id=''/"
	deliver iq GET service@localhost/a proxy.localhost /
	news
	[ "$news" = "<iq type='error' id='1' from='proxy.localhost' to='u@h/r'>$bad
<iq type='error' id='' from='room@proxy.localhost/x' to='u@h/r'>$bad
<iq type='error' from='proxy.localhost' to='service@localhost/a'>$bad" ]
}

ids_that_are_empty_or_missing() {
	scripted answertime=1
	news
	deliver iq get u@h/r proxy.localhost "id=''/"
	deliver iq get u@h/r proxy.localhost /
	await sh -c "[ \$(grep -o remote-server-timeout '$dir/srv.out' | wc -l) = 2 ]"
	news
	echo "$news" | grep "^<iq type='error' id='' from='proxy.localhost' to='u@h/r'>"
	echo "$news" | grep "^<iq type='error' from='proxy.localhost' to='u@h/r'>"
}

every_printable_character_survives() {
	scripted
	all=$(awk 'BEGIN { for (i = 32; i < 127; i++) printf "%c", i }')
	quoted=$(printf %s "$all" | sed "s/&/\\&amp;/g;s/</\\&lt;/g;s/'/\\&apos;/g")
	deliver iq get "u@h/$quoted" proxy.localhost
	enc=$(printf %s "$quoted" | sed 's/%/%25/g;s/.apos;/\&apos;/')
	plain=$(printf %s "$enc" | sed "s/&apos;/'/g;s/\"/\\&quot;/g")
	await has_written "from='proxy.localhost/u@h/$enc'" ||
		await has_written "from=\"proxy.localhost/u@h/$plain\""
	deliver iq result service@localhost/a "proxy.localhost/u@h/$enc"
	await has_written "to='u@h/$quoted'" ||
		await has_written "to=\"u@h/$(printf %s "$quoted" |
		    sed "s/&apos;/'/g;s/\"/\\&quot;/g")\""
}

not_for_us() {
	scripted
	for t in proxy.localhostx xproxy.localhost other.localhost a@b@proxy.localhost \
	    @proxy.localhost room@other.localhost/x proxy.localhost/ ''; do
		: >"$log"
		deliver iq get u@h/r "$t"
		logged "dropped: iq get from u@h/r to $t:"
	done
	tell srv "<iq type='get' id='1' from='u@h/r'/>"
	logged "dropped: iq get from u@h/r to (nobody)"
	tell srv "<iq type='get' id='1' to='proxy.localhost'/>"
	logged "dropped: iq get from (nobody)"
	tell srv "<iq xmlns='urn:x' type='get' id='1' from='u@h/r' to='proxy.localhost'/>"
	logged "unknown namespace"
	tell srv "<iq xmlns='jabber:server' type='get' id='server' from='u@h/r' to='proxy.localhost'/>"
	hear srv "<iq type='get' id='server' from='proxy.localhost/u@h/r' to='service@localhost/a'/>"
	tell srv "<other from='u@h/r' to='proxy.localhost'/>"
	logged "dropped: other"
	hush srv "<iq"
	deliver iq get u@h/r proxy.localhost
	hear srv "<iq type='get' .*to='service@localhost/a'"
}

full_table() {
	scripted MAXRESOURCES=3
	online b c d e
	logged "joined: service@localhost/c: 3 online"
	logged "ignored: service@localhost/d"
	for i in 1 2 3 4 5 6 7 8 9; do
		deliver iq get u@h/r proxy.localhost "id='$i'/"
		hear srv "id='$i' *" "to='service@localhost/[abc]'"
	done
	[ "$(grep -c ignored "$log")" = 1 ]
	deliver presence unavailable service@localhost/b proxy.localhost /
	online e f
	logged "joined: service@localhost/e: 3 online"
	logged "ignored: service@localhost/f"
}

# More than is written, of any kind: an error each, and the next stanza passes.
too_large() {
	scripted
	x=$(printf '%01000d' 0)
	i=0
	for part in "$x" "<$(printf %.100s "$x" | tr 0 a)/>" "&lt;&lt;&lt;&lt;&lt;" "<a/>"; do
		i=$((i + 1))
		{
			printf %s "<iq type='set' id='l$i' from='u@h/r' to='proxy.localhost'><q>"
			yes "$part" | head -c 700000 | tr -d '\n' | sed 's/<[^>]*$//;s/&[^;]*$//'
			printf %s "</q></iq>"
		} >"$dir/srv.in"
		hear srv "<iq type='error' id='l$i' from='proxy.localhost' to='u@h/r'><error type='modify'><policy-violation"
		deliver iq get u@h/r proxy.localhost "id='n$i'/"
		hear srv "<iq type='get' .*id='n$i'"
	done
	{
		printf %s "<iq type='result' from='service@localhost/a' to='proxy.localhost/u@h/r' id='r'>"
		yes "$x" | head -c 600000
		printf %s "</iq>"
	} >"$dir/srv.in"
	hear srv "<iq type='error' id='r' from='proxy.localhost' to='u@h/r'><error type='modify'><policy-violation"
	{
		printf %s "<iq from='u@h/r' big='"
		yes "$x" | head -c 600000
		printf %s "' type='get' id='t' to='proxy.localhost'/>"
	} >"$dir/srv.in"
	hear srv "<iq type='error' id='t' .*<policy-violation"
	{
		printf %s "<iq type='set' id='fits' from='u@h/r' to='proxy.localhost'><q>"
		yes "$x" | head -c 524000
		printf %s "</q></iq>"
	} >"$dir/srv.in"
	hear srv "<iq type='set' id='fits' .*to='service@localhost/a'"
	unlogged disconnected
}

# What a client may send arrives up to six times as long, and passes.
escapes_are_few() {
	scripted
	for c in apos gt quot; do
		{
			printf %s "<iq type='set' id='a$c' from='u@h/r' to='proxy.localhost'><q a='"
			bytes $((262144 * (${#c} + 2))) "&$c;"
			printf %s "'>"
			printf %s "</q></iq><iq type='set' id='t$c' from='u@h/r' to='proxy.localhost'><q>"
			bytes $((262144 * (${#c} + 2))) "&$c;"
			printf %s "</q></iq>"
		} >"$dir/srv.in"
		# forwarded, not refused
		await grep -q "id='a$c' from='proxy.localhost/u@h/r'" "$dir/srv.out"
		await grep -q "id='t$c' from='proxy.localhost/u@h/r'" "$dir/srv.out"
	done
	fits_in 8192
	unlogged disconnected
	[ "$(tr -cd "'" <"$dir/srv.out" | wc -c)" -ge 524288 ]
	[ "$(tr -cd '>' <"$dir/srv.out" | wc -c)" -ge 524288 ]
	[ "$(tr -cd '"' <"$dir/srv.out" | wc -c)" -ge 524288 ]
}

handshake_with_any_id() {
	ID="a&amp;b&lt;&quot;é🙂 "
	serve
	proxy
	hear srv "<stream:stream"
	tell srv "<?xml version='1.0'?><stream:stream id='$ID'
		xmlns='jabber:component:accept' xmlns:stream='http://etherx.jabber.org/streams'>
		<stream:features/>"
	hear srv "<handshake>$(sha1 'a&b<"é🙂 secret')</handshake>"
	tell srv "<handshake/>"
	logged online
}

refusals_are_logged() {
	serve
	proxy
	hear srv "<stream:stream"
	tell srv "<stream:stream id='x' xmlns='jabber:component:accept'
		xmlns:stream='http://etherx.jabber.org/streams'>
		<stream:error><not-authorized xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>
		<text a='&gt;' xmlns='urn:ietf:params:xml:ns:xmpp-streams'>Not
		today€</text></stream:error></stream:stream>"
	logged "^client_proxy: disconnected: not-authorized: Not%0A.*today%E2%82%AC$"
	serve
	hear srv "<stream:stream"
	tell srv "<stream:stream id='x' xmlns='jabber:server'
		xmlns:stream='http://etherx.jabber.org/streams'>"
	hear srv "<invalid-namespace"
	logged "disconnected: this is no component port"
	unlogged "$(sha1 xsecret)"
}

# While nobody is there it tries each second, however long that lasts, and says
# so a few times only.
a_server_that_comes_back_is_seen_at_once() {
	proxy
	logged waiting
	sleep 12
	[ "$(wc -l <"$log")" -le 5 ]
	begun=$(date +%s%N)
	serve
	hear srv "<stream:stream"
	took=$((($(date +%s%N) - begun) / 1000000))
	echo "$took ms after the port was open"
	tries=$(grep -c "connect: " "$log")
	[ "$tries" = 2 ]
}

# A server that is there and refuses is left alone for longer each time, up to
# backoffmax; so is one that accepts and then throws us out.
backing_off() {
	for how in refuses accepts; do
		rm -f "$dir/proxy.log"
		[ $how = accepts ] || ID=x
		proxy backoffmax=4
		for i in 1 2 3 4 5; do
			serve
			[ $how = accepts ] || hear srv "<stream:stream"
			[ $how = refuses ] || welcome
			[ $how = accepts ] || tell srv "<stream:stream id='x' xmlns='jabber:component:accept'
				xmlns:stream='http://etherx.jabber.org/streams'>"
			tell srv "<stream:error><conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>
				</stream:error></stream:stream>"
			await sh -c "[ \$(grep -c 'disconnected: conflict' '$log') = $i ]"
			end "$(cat "$dir/srv.pid")"
		done
		await sh -c "[ \$(grep -c waiting '$log') -ge 5 ]"
		grep -A 1 "disconnected: conflict" "$log" | awk '/waiting/ { t[++n] = $3 }
		END { exit !(t[1] < 1 && t[2] >= 1 && t[2] < 2 && t[3] >= 2 && t[3] < 4 && t[4] >= 2 && t[5] >= 2 && t[5] < 4) }'
		stop
	done
}

# A name with several addresses, as the C library's test tool makes them up.
all_addresses_of_a_host() {
	printf '%s many.test\n' 127.0.0.9 ::1 127.0.0.1 >"$dir/hosts"
	wrapped() {
		ASAN_OPTIONS=verify_asan_link_order=0 NSS_WRAPPER_HOSTS=$dir/hosts \
		    LD_PRELOAD=libnss_wrapper.so proxy "$@"
	}
	wrapped host='"many.test"'
	logged waiting
	for a in 127.0.0.9 ::1 127.0.0.1; do
		logged "connect: $a port $cport: "
	done
	serve
	welcome
	# nor does one that has served before keep the others from being tried
	cut_off srv
	connect srv "TCP6-LISTEN:$cport,bind=[::1],reuseaddr"
	await listening_only "$cport"
	welcome
	stop
	rm -f "$dir/srv".*
	connect srv "TCP6-LISTEN:$cport,bind=[::1],reuseaddr"
	await listening_only "$cport"
	wrapped host='"many.test"'
	welcome
	stop
	proxy host='"no.such.host.invalid"'
	logged "resolve: no.such.host.invalid"
	logged waiting
}

# Ends within a second with status 0, whatever state it is in.
signals() {
	proxy
	logged waiting
	stop
	connect srv "TCP-LISTEN:$cport,bind=127.0.0.1,reuseaddr"
	await listening_only "$cport"
	proxy
	hear srv "<stream:stream"
	stop
	hear srv "</stream:stream>"
	scripted
	deliver iq get u@h/r proxy.localhost
	hear srv "<iq"
	stop
	hear srv "</stream:stream>"
	serve
	proxy
	welcome
	kill -INT "$proxypid"
	await gone "$proxypid"
	hear srv "</stream:stream>"
	for sig in HUP QUIT; do
		serve
		proxy
		welcome
		kill "-$sig" "$proxypid"
		await gone "$proxypid"
		wait "$proxypid"
		hear srv "</stream:stream>"
	done
	# a server that takes nothing
	serve
	proxy
	welcome
	kill -STOP "$(cat "$dir/srv.pid")"
	stop
}

configurations_that_cannot_work() {
	for c in target='"service"' target='"service@localhost/x"' target='"@localhost"' \
	    target='"a@b@c"' target='"service@"' target='"service@proxy.localhost"' \
	    target='"Service@localhost"' target='""' domain='""' domain='"a/b"' \
	    domain='"a b"' domain='"a@b"' domain='"A.localhost"' secret='""' \
	    domain='"proxy.localhost."' target='"service@localhost."' refresh=4294967295 \
	    keepalive=2592001 host='""' port='""' backoffmax=0 choice=3 tlspin='" "' tlspin='"12:34"' \
	    tlspin="\"$(bytes 63 a)\"" tlspin="\"$(bytes 65 a)\"" tlspin="\"$(bytes 64 g)\"" \
	    tlspin="\"$(bytes 576 a)\"" tlspin="\"sha256 Fingerprint=$(bytes 64 a)\""; do
		configure "$c"
		brief
		echo "$c: $rc"
		cat "$dir/err"
		[ $rc = 1 ]
		grep -q "^client_proxy: [a-z]*: " "$dir/err"
		[ "$(wc -l <"$dir/err")" = 1 ]
	done
}

options() {
	configure
	brief -v
	[ $rc = 0 ]
	[ "$(cat "$dir/out")" = "client_proxy-$(sed -n 's/^VERSION = //p' Makefile)" ]
	for o in -h x '-v -v' '-x y'; do
		# shellcheck disable=SC2086 # words
		brief $o
		[ $rc = 1 ]
		grep -q "^usage: " "$dir/err"
	done
}

small_in_memory() {
	case ${CFLAGS-} in *sanitize*) echo "of no use with sanitizers"; exit 77 ;; esac
	scripted
	awk '/VmRSS/ { exit !($2 < 4096) }' "/proc/$proxypid/status"
	strip -o "$dir/stripped" "$bin"
	[ "$(wc -c <"$dir/stripped")" -lt 65536 ]
}

# What has been read goes out before anything else is waited for.
a_request_takes_one_turn() {
	need strace strace
	case ${CFLAGS-} in *sanitize*) echo "of no use with sanitizers"; exit 77 ;; esac
	one_request
	cat "$dir/turn"
	[ "$(sed 's/(.*//' "$dir/turn" | tr '\n' ' ')" = "poll read write poll " ]
	grep -q "^read.*<iq type='get' from='u@h/r'.*id='last'" "$dir/turn"
	grep -q "^write.*<iq type='get' id='last'.*</iq>" "$dir/turn"
}

# Nothing else in the tests would see the program become slower.
costs_little_more_than_parsing() {
	need valgrind valgrind
	case ${CFLAGS-} in *sanitize*) echo "of no use with sanitizers"; exit 77 ;; esac
	configure
	build_load
	for p in exchanges=140 answers=140 texts=120 elements=140; do
		count_instructions "${p%=*}"
		[ $((cost * 100)) -lt $((floor * ${p#*=})) ]
	done
}

# ---- tests: faults and hostile input ----

memory_stays_bounded() {
	scripted
	from="type='error' from='u@h/r' to='proxy.localhost'"
	awk -v from="$from" 'BEGIN {
		for (i = 0; i < 1000000; i++)
			printf "<message %s><e%d a%d=\"\" xmlns:p%d=\"u\"/></message>", from, i, i, i
	}' >"$dir/srv.in"
	goes_on names
	{ echo "<message $from>"; bytes 6000000 "text "; echo "</message>"; } >"$dir/srv.in"
	goes_on text
	{ echo "<message $from>"; bytes 4000000 "<a/>"; echo "</message>"; } >"$dir/srv.in"
	goes_on elements
	awk 'BEGIN {
		for (i = 0; i < 5000; i++)
			printf "<presence from=\"service@localhost/%01000d\" to=\"proxy.localhost\"/>", i
	}' >"$dir/srv.in"
	goes_on resources
	logged "1024 online is the limit"
	{ printf "<message a='"; bytes 40000000 xxxxxxxxxxxxxxxx; } >"$dir/srv.in" 2>"$dir/err" || :
	ends_with policy-violation
	{ printf "<m"; bytes 20000000 xxxxxxxxxxxxxxxx; } >"$dir/srv.in" 2>"$dir/err" || :
	ends_with policy-violation
	{ echo "<message $from>"; bytes 300000 "<a>"; } >"$dir/srv.in" 2>"$dir/err" || :
	ends_with policy-violation
	{ echo "<message $from>"; names 8000000 "<%/>"; } >"$dir/srv.in" 2>"$dir/err" || :
	ends_with policy-violation
	{ echo "<message"; names 8000000 " %=''"; } >"$dir/srv.in" 2>"$dir/err" || :
	ends_with policy-violation
}

# A fresh parser takes over in the middle of a read: nothing lost or reordered.
a_fresh_parser_loses_nothing() {
	scripted PARSERSOFT=100000 MAXREQUESTS=20000
	awk 'BEGIN {
		for (i = 0; i < 20000; i++)
			printf "<iq type=\"get\" id=\"n%d\" from=\"u@h/r\" to=\"proxy.localhost\"><e%d a=\"b\">t</e%d></iq>", i, i, i
	}' >"$dir/many"
	cat "$dir/many" >"$dir/srv.in"
	await grep -q "id='n19999'" "$dir/srv.out"
	stanzas <"$dir/srv.out" | sed -n "s|.*id='n\([0-9]*\)'.*><e\([0-9]*\) a='b'>t</e\2></iq>|\1 \2|p" >"$dir/ids"
	awk 'BEGIN { for (i = 0; i < 20000; i++) print i, i }' | cmp - "$dir/ids"
	unlogged disconnected
}

# With the expat that is installed and with the others of the distribution.
split_anywhere_on_each_expat() {
	split_anywhere
	need apt-get apt
	cd "$dir"
	for v in $(apt-cache madison libexpat1 | awk '{ print $3 }'); do
		apt-get download "libexpat1=$v" || continue
		dpkg -x "libexpat1_$v"_*.deb "expat.$v" || continue
		lib=$(find "$dir/expat.$v" -name 'libexpat.so.1' -printf %h)
		cd "$TESTDIR/src"
		stop
		LD_LIBRARY_PATH=$lib split_anywhere
		grep "$lib" "/proc/$proxypid/maps" >"$dir/maps"
		cd "$dir"
		echo "$v" >>versions
	done
	cd "$TESTDIR/src"
	[ "$(sort -u "$dir/versions" | wc -l)" -gt 1 ] || echo "only one version"
}

# A large attribute costs about the same in however many pieces it arrives: the
# processor's instructions, as valgrind counts them.
pieces_cost_little() {
	need valgrind valgrind
	case ${CFLAGS-} in *sanitize*) echo "of no use with sanitizers"; exit 77 ;; esac
	configure MAXREQUESTS=8
	build_harness pieces cc -O2
	{
		printf %s "<iq type='get' id='1' from='u@h/r' to='proxy.localhost'><q a='"
		bytes 500000 x
		printf %s "'/></iq>"
	} >"$dir/large"
	for size in 64 100000; do
		valgrind --tool=callgrind --callgrind-out-file="$dir/cost.$size" \
		    "$harness" "$dir/large" $size | grep "^1 out"
	done
	small=$(sed -n 's/^summary: //p' "$dir/cost.64")
	large=$(sed -n 's/^summary: //p' "$dir/cost.100000")
	echo "$small instructions in pieces of 64 bytes, $large in large ones"
	[ "$small" -lt $((100 * large)) ]
}

# A server that does not read makes us wait, not lose, and not spin.
back_pressure() {
	build_peer
	"$peer" stall "$cport" 20000 >"$dir/stall" &
	server=$!
	echo $server >>"$dir/pids"
	await listening_only "$cport"
	proxy MAXREQUESTS=20000
	await grep stuck "$dir/stall"
	before=$(switches)
	sleep 1
	[ $(($(switches) - before)) -lt 20 ]
	fits_in $((6144 + 0${TLS:+1024}))
	wait $server
	cat "$dir/stall"
	grep "20000 of 20000 in order" "$dir/stall"
}

liveness() {
	scripted keepalive=1
	hear srv "<iq type='get' id='ping' from='proxy.localhost' to='proxy.localhost'><ping xmlns='urn:xmpp:ping'/></iq>"
	tell srv "$heard"
	hear srv "<iq type='get' id='ping'"
	deliver iq error proxy.localhost proxy.localhost "id='ping'/"
	hear srv "<iq type='get' id='ping'"
	tell srv " "
	hear srv "<iq type='get' id='ping'"
	deliver iq get u@h/r proxy.localhost "id='ping'/"
	hear srv "<iq type='get' id='ping' .*to='service@localhost/a'"
	unlogged disconnected
	unlogged dropped
	logged "disconnected: the server is silent"
	logged waiting
}

time_limits() {
	build_peer
	background "$peer" deaf "$cport"
	await listening_only "$cport"
	sleep 0.5
	proxy patience=1
	logged "connect: 127.0.0.1 port $cport: \\(Connection\\|Operation\\) timed out"
	logged waiting
	stop
	cleanup
	set -e
	serve
	proxy patience=1
	logged "disconnected: the server does not answer the handshake in time"
	hear srv "</stream:stream>"
}

forbidden_xml() {
	for bad in '<!-- no -->' '<?no no?>' '<a><!--x--></a>' '<a><?x y?></a>' '<?a?>' '<!DOCTYPE a>' \
	    '<a><!DOCTYPE a [<!ENTITY b "c">]></a>'; do
		[ -n "$proxypid" ] || scripted backoffmax=1
		tell srv "$bad"
		ends_with restricted-xml
	done
	for bad in '<?xml version="1.0"?>' '<!ELEMENT a>' '</a>' '<iq' '<a b=c/>' '<a>&nbsp;</a>' '<a b="1" b="2"/>' '<a>&#0;</a>' '<a>&#xFFFE;</a>' \
	    '<a><b></a>' "$(printf '<a>\300\257</a>')" "$(printf '<a>\377</a>')" "$(printf '<a>\355\240\200</a>')" '<a b="<"/>'; do
		tell srv "$bad<x>"
		ends_with not-well-formed
	done
}

wrong_streams() {
	ns="xmlns='jabber:component:accept' xmlns:stream='http://etherx.jabber.org/streams'"
	for c in "bad-format <stream:stream $ns>" "bad-format <stream $ns id='1'>" \
	    "bad-format <html id='1'>" \
	    "invalid-namespace <stream:stream id='1' xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>" \
	    "invalid-namespace <stream:stream id='1' xmlns='jabber:component:accept' xmlns:stream='urn:x'>" \
	    "invalid-namespace <stream:stream id='1'>" \
	    "bad-format <stream:stream $ns id='1'><iq/>" \
	    "bad-format <stream:stream $ns id='1'><presence from='a@b/c' to='proxy.localhost'/>" \
	    "restricted-xml <!DOCTYPE stream:stream><stream:stream $ns>" \
	    "restricted-xml <?xml-stylesheet href='x'?><stream:stream $ns>" \
	    "not-well-formed HTTP/1.1 400 Bad Request <>" \
	    "policy-violation <stream:stream $ns id='1' $(names 2000 " xmlns:%='u'")>"; do
		serve
		[ -n "$proxypid" ] || proxy backoffmax=1
		hear srv "<stream:stream"
		tell srv "${c#* }"
		hear srv "<${c%% *} xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>"
	done
	logged "disconnected: "
}

descriptors_and_reports() {
	serve
	configure
	log=$dir/proxy.log
	: >"$log"
	# shellcheck disable=SC2086 # a command and its options, or nothing
	${WRAPPER-} "$bin" <&- >&- 2>&- &
	pid=$!
	echo $pid >>"$dir/pids"
	proxypid=$pid
	welcome
	await [ -L "/proc/$proxypid/fd/2" ]
	for fd in 0 1 2; do
		[ "$(readlink "/proc/$proxypid/fd/$fd")" = /dev/null ]
	done
	grep "^Max core file size *0 " "/proc/$proxypid/limits"
	stop
	# nobody reads what it says
	serve
	mkfifo "$dir/pipe"
	head -n 1 <"$dir/pipe" >"$dir/head" &
	# shellcheck disable=SC2086
	background ${WRAPPER-} "$bin" 2>"$dir/pipe"
	proxypid=$pid
	welcome
	online a b c
	deliver iq get u@h/r proxy.localhost
	hear srv "to='service@localhost/[abc]'"
	stop
	scripted
	deliver iq get u@h/r proxy.localhost
	hear srv "to='service@localhost/a'"
	deliver iq result service@localhost/a proxy.localhost/u@h/r
	deliver iq get u@h/r proxy.localhost/x
	deliver iq get service@localhost/a proxy.localhost
	deliver iq get "u@h/$(bytes 1023 x)" proxy.localhost
	deliver iq result nobody@h/r proxy.localhost/u@h/r
	hear srv "<not-acceptable"
	kill -USR1 "$proxypid"
	deliver iq get u@h/r proxy.localhost
	deliver iq get u@h/r proxy.localhost
	hear srv "to='service@localhost/a'"
	hear srv "to='service@localhost/a'"
	kill -USR1 "$proxypid"
	logged "counted: 1 requests, 0 untracked, 1 answers, 0 late, 0 messages, 1 service-unavailable, 1 feature-not-implemented, 1 not-acceptable, 0 policy-violation, 0 resource-constraint, 0 recipient-unavailable, 0 remote-server-timeout, 0 bad-request, 1 dropped, 1 connections, 1 online, 0 open, [0-9]* bytes in, [0-9]* bytes out"
	logged "resource: service@localhost/a: 0 open"
	logged "counted: 3 requests, .* 1 online, 2 open"
	logged "resource: service@localhost/a: 2 open"
}

# The connection is reset, cut in the middle of a stanza, half closed.
cut_connections() {
	scripted backoffmax=1
	tell srv "<iq type='get' from='u@h/r' to='proxy.loc"
	sleep 0.1
	end "$(cat "$dir/srv.pid")" 9
	logged "disconnected: "
	serve
	welcome
	tell srv "</stream:stream>"
	logged "disconnected: the server has closed the stream"
	hear srv "</stream:stream>"
	for i in 1 2 3 4 5; do
		serve
		welcome
		cat "$dir/srv.out" >"$dir/kept.$i"
		thousands=$(bytes 200000 "<iq type='get' id='x' from='u@h/r' to='proxy.localhost'/>")
		tell srv "$thousands"
		end "$(cat "$dir/srv.pid")" 9
	done
	serve
	welcome
}

# No stanza that a client may send ends our stream.
ugly_stanzas_on_prosody() {
	need prosody prosody
	ugly_stanzas prosody
}

ugly_stanzas_on_ejabberd() {
	need ejabberdctl ejabberd
	ugly_stanzas ejabberd
}

# ---- tests: the files ----

compiles_without_a_warning() {
	for c in gcc clang; do
		for o in -O0 -O2; do
			configure
			(cd "$build" && make clean && make CC=$c CFLAGS="$o -Werror")
		done
	done
}

documents_and_scripts_are_clean() {
	mandoc -Tlint client_proxy.1 | tee "$dir/lint"
	[ ! -s "$dir/lint" ]
	shellcheck -s sh test.sh
	# every setting is in the man page
	sed -n 's/^static const [^=]*[ *]\([a-z]*\) *=.*/\1/p;s/^	\([A-Z]*\) *=.*/\1/p' \
	    config.def.h >"$dir/settings"
	[ "$(wc -l <"$dir/settings")" -gt 10 ]
	while read -r s; do
		grep -q "^\\.It [A-Z][a-z] $s" client_proxy.1 || { echo "no $s"; return 1; }
	done <"$dir/settings"
}

install_uninstall_dist() {
	cp -R . "$dir/src"
	cd "$dir/src"
	make install DESTDIR="$dir/root" PREFIX=/usr
	[ "$(stat -c %a "$dir/root/usr/bin/client_proxy")" = 711 ]
	[ "$(stat -c %a "$dir/root/usr/share/man/man1/client_proxy.1")" = 644 ]
	"$dir/root/usr/bin/client_proxy" -v
	make uninstall DESTDIR="$dir/root" PREFIX=/usr
	[ -z "$(find "$dir/root" -type f)" ]
	echo "/* mine */" >>config.h
	make clean
	grep -q mine config.h
	make dist
	mkdir "$dir/dist"
	cd "$dir/dist"
	tar -xzf "$dir/src/client_proxy-"*.tar.gz
	cd client_proxy-*
	[ "$(printf '%s ' *)" = \
	    "LICENSE Makefile README client_proxy.1 client_proxy.c config.def.h test.sh " ]
	make
	./client_proxy -v
	cd "$TESTDIR/src"
}

# ---- the demo ----

# Print a stanza as it passes, and what it is.
show() {
	printf '\n%s\n    %s\n' "$1" "$2"
}

demo() {
	place demo
	guard
	build_peer >"$dir/peer.log"
	echo "Prosody starts, then client_proxy with the settings of config.def.h,"
	echo "but for the port. service@localhost logs in twice and accepts it."
	prosody
	proxy
	services a b
	sed 's/^/    /' "$log"
	login user abc
	ask user 1234
	show "1. user@localhost/abc asks proxy.localhost:" "$asked"
	r=a
	until find_stanza "$r" "<iq" "id='1234'"; do
		[ $r = a ] && r=b || r=a
	done
	show "2. one of the target's resources, $r, gets the request, and from whom:" \
	    "$heard"
	answer "$r"
	show "3. it answers to that address:" "$answer"
	hear user "<iq" "id='1234'"
	show "4. the user gets the answer, from the address asked:" "$heard"
	tell a "<presence type='unavailable'/>"
	tell b "<presence type='unavailable'/>"
	logged "left.*: 0 online"
	peer worker "$c2s" service localhost a
	peer worker "$c2s" service localhost b
	await sh -c "[ \$(grep -c 'joined.*: 2 online' '$log') = 2 ]"
	printf '\nA dozen more, and how many each resource has answered:\n    '
	"$peer" asker "$c2s" user more proxy.localhost 12
	stop
}

# ---- running ----

tests() {
	sed -n '/^# ---- tests/,/^# ---- the demo/s/^\([a-z0-9_]*\)() {$/\1/p' test.sh
}

# The body of a test, in a process of its own. What still runs at its end must
# end well.
inside() {
	guard
	proxypid=
	"$1"
	[ -z "$proxypid" ] || gone "$proxypid" || stop
}

# Run one test in a directory and on ports of its own.
run() {
	place "run.$1"
	timeout --foreground -k 30 300 sh ./test.sh inside "$1" >"$dir/output" 2>&1 </dev/null
	rc=$?
	grep -q -e "runtime error" -e Sanitizer -e "^==" "$dir"/*.log 2>/dev/null && rc=1
	case $rc in
	0)
		echo "ok - $1$2"
		passed=$((passed + 1))
		;;
	77)
		echo "ok - $1$2 # skipped: $(tail -n 1 "$dir/output")"
		skipped=$((skipped + 1))
		;;
	*)
		echo "not ok - $1$2"
		failed=$((failed + 1))
		tail -n 20 "$dir/output" "$dir/proxy.log" 2>/dev/null | cut -c1-2000 |
		    sed 's/^/# /'
		;;
	esac
}

# Fuzz for so many seconds, without and with relay.
fuzz() {
	fuzz_with $(($1 / 2)) 0 && fuzz_with $(($1 / 2)) 1
}

# For so many seconds, with relay or without, from the stanzas in this file.
fuzz_with() {
	dir=$TESTDIR/fuzz.$2
	mkdir "$dir" "$dir/corpus"
	cport=0
	configure relay="$2" MAXRESOURCES=8 MAXREQUESTS=6 REQUESTSIZE=40 MAXSTANZA=4096 \
	    OUTSIZE=20000 INSIZE=1000 PARSERSOFT=60000 PARSERHARD=200000
	build_harness fuzz clang "-DFUZZ -fsanitize=fuzzer,address,undefined
	    -fno-sanitize-recover=all" || exit
	sed -n "s/^[^<]*\\(<[a-z!?][^|]*>\\).*/\\1/p" test.sh | sort -u |
	    awk -v dir="$dir/corpus/" '{
		for (i = 0; i < 16; i += 5) {
			file = dir NR "." i
			printf "%c%s", 64 + i, $0 >file
			close(file)
		}
	}'
	for word in iq message presence "type='" "from='" "to='" "id='1'" "<iq type='get' " \
	    "<iq type='result' " "from='u@h/r' " "to='proxy.localhost'" "/u@h/r'" get set \
	    result error "from='service@localhost/a' " subscribe subscribed unavailable \
	    "<s:a/>" "<![CDATA[" "]]>" "&lt;" "&#13;" "xmlns='" "</iq>" "/>" "<stream:error>" \
	    jabber:client "%C3%A9" "to='proxy.localhost/service@localhost/a'" "<body/>" \
	    "<message type='chat' " "to='proxy.localhost/u@h/r'" "<handshake/>" "</stream:stream>"; do
		echo "\"$word\""
	done >"$dir/words"
	cd "$dir" || exit
	"$harness" -max_total_time="$1" -max_len=8192 -timeout=20 -rss_limit_mb=4096 \
	    -dict="$dir/words" -print_final_stats=1 corpus >"$dir/log" 2>&1 &&
		grep -e DONE -e stat:: "$dir/log" | tail -n 6 && cd "$TESTDIR/src" && return
	tail -n 60 "$dir/log"
	for f in crash-* timeout-* leak-* oom-*; do
		[ ! -f "$f" ] || { echo "$f, as base64:"; openssl base64 -in "$f"; }
	done
	return 1
}

# A day's work in so many seconds: workers that come and go, requesters at full
# speed, the proxy and the server restarted. In a calm interval every request
# is answered; while workers leave or are killed each gets an answer or an error.
soak() {
	place soak
	guard
	build_peer
	prosody
	proxy
	service approver
	hear approver "type='subscribe'"
	tell approver "<presence type='subscribed' to='proxy.localhost'/>"
	logged "joined: service@localhost/approver"
	tell approver "<presence type='unavailable'/>"
	logged "left: service@localhost/approver"
	printf '%-22s %9s %9s %9s %9s\n' "while" sent answered errors lost
	until=$(($(date +%s) + $1))
	: >"$dir/table"
	while [ "$(date +%s)" -lt $until ]; do
		for event in nothing leave kill proxy server; do
			soak_round $event 5000
		done
	done
	awk '{
		n[$1] += $2
		a[$1] += $4
		e[$1] += $6
		bad += $(NF - 1)
		for (i = 8; i < NF; i += 2)
			if (length($i) > 1)
				kinds[$i] += $(i + 1)
	}
	END {
		for (w in n) {
			lost = n[w] - a[w] - e[w]
			printf "%-22s %9d %9d %9d %9d\n", w, n[w], a[w], e[w], lost
			bad += (w == "nothing" && e[w]) || (w !~ /proxy|server/ && lost)
		}
		for (k in kinds)
			print kinds[k], "times", k
		exit bad > 0
	}' "$dir/table"
	grep -c . "$log" | sed 's/$/ lines of log/'
	awk '/VmHWM/ { print "at most " $2 " KiB resident since its last start" }' "/proc/$proxypid/status"
	stop
}

# Four workers, three requesters, and in the middle of it: nothing; a worker
# leaves; one is killed; the proxy is; the server is.
soak_round() {
	before=$(grep -c "joined" "$log")
	workers=
	for r in a b c d; do
		peer worker "$c2s" service localhost $r
		workers="$pid $workers"
	done
	await sh -c "[ \$(grep -c joined '$log') -ge $((before + 4)) ]"
	askers=
	for r in x y z; do
		"$peer" asker "$c2s" user "$r$1" proxy.localhost "$2" >"$dir/asked.$r" &
		askers="$! $askers"
	done
	sleep 1
	case $1 in
	leave) kill -USR1 "$pid" ;;
	kill) end "$pid" 9 ;;
	proxy)
		kill -9 "$proxypid"
		proxy
		;;
	server)
		end "$serverpids" 9 2>&1 || :
		prosody
		;;
	esac
	# shellcheck disable=SC2086 # several
	wait $askers || :
	for p in $workers; do
		end "$p" || :
	done 2>>"$dir/ended"
	for r in x y z; do
		sed "s/^/$1 /" "$dir/asked.$r"
	done >>"$dir/table"
}

# The stanzas of a profile: so many requests, a hundred at a time, each time
# followed by their answers; or answers only, which nobody has waited for.
profile() {
	awk -v profile="$1" -v n="$2" 'BEGIN {
		ORS = ""
		while (length(text) < 8192)
			text = text "The quick brown fox jumps over the lazy dog. "
		for (i = 0; i < 100; i++)
			items = items "<item n=\"" i "\">x</item>"
		payload["exchanges"] = "<query xmlns=\"http://jabber.org/protocol/disco#info\" node=\"a\"/>"
		payload["answers"] = "<query xmlns=\"jabber:iq:version\"><name>svc</name></query>"
		payload["texts"] = "<query xmlns=\"urn:x\">" text "</query>"
		payload["elements"] = "<query xmlns=\"urn:x\">" items "</query>"
		for (i = 0; i < n; i++) {
			user = "user" i * 7919 % 100003 "@localhost/Psi+" i % 97
			if (profile != "answers")
				print "<iq type=\"get\" id=\"x" i "\" from=\"" user \
				    "\" to=\"proxy.localhost\">" payload[profile] "</iq>"
			answers = answers "<iq type=\"result\" id=\"x" i \
			    "\" from=\"service@localhost/r" i % 8 "\" to=\"proxy.localhost/" \
			    user "\">" payload[profile] "</iq>"
			if (i % 100 == 99) {
				print answers
				answers = ""
			}
		}
	}' | tr '"' "'"
}

# Instructions for some 2000 stanzas of a profile, as valgrind counts them: $cost,
# and $floor for expat alone.
count_instructions() {
	valgrind="valgrind -q --tool=callgrind --callgrind-out-file=$dir/cost"
	profile "$1" 1000 | head -c 3000000 | sed 's/<\/iq>[^/]*$/<\/iq>/' >"$dir/in"
	n=$(grep -o '</iq>' "$dir/in" | wc -l)
	# shellcheck disable=SC2086 # a command and its options
	$valgrind "$load" parse "$dir/in" 1 131072 >"$dir/lost"
	floor=$(sed -n 's/^summary: //p' "$dir/cost")
	# shellcheck disable=SC2086
	"$load" serve "$dir/in" 1 "$n" 8 "$cport" $valgrind "$bin" >"$dir/lost"
	cost=$(sed -n 's/^summary: //p' "$dir/cost")
	echo "$1: $(grep -o '[0-9]*$' "$dir/lost") of $n stanzas lost," \
	    "$((cost / n)) instructions for each, $((cost * 100 / floor)) % of parsing"
	grep -q " 0$" "$dir/lost"
}

# Lines of user and system time: the mean of their sum.
mean() {
	awk '{ n += $1 + $2 } END { printf "%d", n / NR }' "$1"
}

# Clock ticks of CPU time that a process and the children it waited for have used.
ticks() {
	awk '{ print $14 + $15 + $16 + $17 }' "/proc/$1/stat"
}

# How much of the work the server has: so many requests from a client through
# the server, client_proxy, the server again, a worker, and back.
link() {
	(
		place "link.$1"
		guard
		"$1"
		proxy
		services a
		peer worker "$c2s" service localhost b
		logged "joined.*/b: 2 online"
		tell a "<presence type='unavailable'/>"
		logged "left: service@localhost/a: 1 online"
		theirs=$(ticks "$serverpids")
		ours=$(ticks "$proxypid")
		begun=$(date +%s%N)
		"$peer" asker "$c2s" user x proxy.localhost "$2" >"$dir/asked"
		took=$((($(date +%s%N) - begun) / 1000000))
		theirs=$(($(ticks "$serverpids") - theirs))
		ours=$(($(ticks "$proxypid") - ours))
		echo "$1: $(cut -d, -f2 "$dir/asked"), $(($2 * 1000 / took)) a second;" \
		    "CPU time $theirs ticks, client_proxy's $ours"
		stop
	) || echo "$1 did not work"
}

# What client_proxy adds to the cost of parsing, in CPU time: medians of fifteen
# short runs, each next to two of expat alone, with handlers that do nothing, over
# the same bytes in pieces of the same size: from a file, and as a relay, which
# reads them from the connection and writes them back as they came. Absolute
# figures are this machine's.
bench() {
	place bench
	guard
	need strace strace
	need valgrind valgrind
	build_load
	TLS=front
	configure
	front server
	with_tls=$bin
	unset TLS
	configure
	cp "$with_tls" "$bin.tls"
	: >"$dir/table"
	for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
		while read -r name n times resources tls; do
			[ -f "$dir/$name" ] || profile "$name" "$n" >"$dir/$name"
			[ "$name" = answers ] || n=$((2 * n))
			{
				printf '%s ' "$name/$resources$tls" $((n * times))
				"$load" parse "$dir/$name" "$times" 131072
				printf ' '
				"$load" serve "$dir/$name" "$times" $((n * times)) -1 \
				    "$cport" "$load" relay "$cport" 131072
				printf ' '
				"$load" serve "$dir/$name" "$times" $((n * times)) \
				    "$resources" "$cport" "$bin$tls" 2>"$dir/log"
				echo
			} >>"$dir/table"
		done <<-E
		exchanges 50000 2 8
		exchanges 50000 2 1
		exchanges 50000 2 1000
		answers 100000 2 8
		texts 1000 10 8
		elements 2500 3 8
		exchanges 50000 2 8 .tls
		texts 1000 10 8 .tls
		E
	done
	echo "CPU time in microseconds per stanza, and as multiples of that of expat alone"
	awk '
	function median(list,  a, n, i, j, t) {
		n = split(list, a, " ")
		for (i = 2; i <= n; i++)
			for (j = i; j > 1 && a[j] + 0 < a[j - 1] + 0; j--) {
				t = a[j]
				a[j] = a[j - 1]
				a[j - 1] = t
			}
		spread = sprintf("%.2f-%.2f", a[1], a[n])
		return a[int((n + 1) / 2)]
	}
	BEGIN {
		printf "%-15s %5s %5s %5s %5s %5s %5s %5s %10s %9s %5s %4s\n", \
		    "for resources", "user", "sys", "expat", "relay", "user", "relay", \
		    "all", "spread", "stanzas/s", "KiB", "lost"
	}
	!($1 in user) { order[++profiles] = $1 }
	{
		expat[$1] = expat[$1] " " ($3 + $4) / $2
		relay[$1] = relay[$1] " " ($5 + $6) / $2
		user[$1] = user[$1] " " $10 / $2
		sys[$1] = sys[$1] " " $11 / $2
		ratio[$1] = ratio[$1] " " $10 / ($3 + $4)
		all[$1] = all[$1] " " ($10 + $11) / ($3 + $4)
		other[$1] = other[$1] " " ($10 + $11) / ($5 + $6)
		rate[$1] = rate[$1] " " $2 / $12 * 1000000
		peak[$1] = $13 > peak[$1] ? $13 : peak[$1]
		lost[$1] += $14
	}
	END {
		for (i = 1; i <= profiles; i++) {
			p = order[i]
			printf "%-15s %5.2f %5.2f %5.2f %5.2f %5.2f ", p, median(user[p]), \
			    median(sys[p]), median(expat[p]), median(relay[p]), median(ratio[p])
			printf "%5.2f %5.2f ", median(other[p]), median(all[p])
			printf "%10s %9d %5d %4d\n", spread, median(rate[p]), peak[p], lost[p]
		}
	}' "$dir/table"
	echo
	for p in exchanges answers texts elements; do
		count_instructions $p 2>"$dir/log"
	done
	for i in 1 2 3 4 5 6 7 8 9 10; do
		{ "$load" run "$bin" -v && echo; } >>"$dir/starts"
		{ "$load" serve /dev/null 0 0 0 "$cport" "$bin" && echo; } >>"$dir/online"
	done 2>"$dir/log"
	printf '\nfrom start to being online: %d microseconds, of which -v takes %d\n' \
	    "$(mean "$dir/online")" "$(mean "$dir/starts")"
	strip -o "$dir/stripped" "$bin"
	echo "stripped binary: $(wc -c <"$dir/stripped") bytes"
	printf '\na single request on an idle connection:\n'
	one_request
	sed 's/^/    /' "$dir/turn"
	printf '\n20000 requests of a client through a whole server:\n'
	link prosody 20000
	link ejabberd 20000
}

# The sources of the two libraries, from where their packages come, for machines
# that there are no packages for here.
library_sources() {
	[ ! -d "$TESTDIR/lib" ] || return 0
	mkdir -p "$TESTDIR/lib/parts" "$TESTDIR/lib/lists/partial" "$TESTDIR/lib/cache/archives/partial"
	(
		set -e
		cd "$TESTDIR/lib"
		for f in /etc/apt/sources.list.d/debian*; do
			[ ! -f "$f" ] || sed 's/^Types:.*/Types: deb-src/;s/^deb /deb-src /' "$f" >"parts/${f##*/}"
		done
		touch list
		[ ! -f /etc/apt/sources.list ] || sed 's/^deb /deb-src /' /etc/apt/sources.list >list
		set -- -q -o "Dir::Etc::sourcelist=$PWD/list" -o "Dir::Etc::sourceparts=$PWD/parts" \
		    -o "Dir::State::lists=$PWD/lists" -o "Dir::Cache=$PWD/cache"
		apt-get "$@" update
		apt-get "$@" --tar-only source expat bearssl
		for f in expat bearssl; do
			mkdir $f
			tar -xf $f*.tar.* -C $f --strip-components=1
		done
		[ -d expat/lib ] || mv expat/expat/* expat
	) >"$TESTDIR/lib.log" 2>&1
	if [ ! -d "$TESTDIR/lib/expat/lib" ] || [ ! -d "$TESTDIR/lib/bearssl/src" ]; then
		tail -n 20 "$TESTDIR/lib.log"
		return 1
	fi
}

# Compile them with $CC and $CFLAGS into $LIBS.
libraries() {
	objs=$TESTDIR/objs
	mkdir "$objs"
	touch "$objs/expat_config.h"
	CPPFLAGS="-I$TOP/lib/expat/lib -I$TOP/lib/bearssl/inc"
	export CPPFLAGS
	(
		cd "$objs" || exit
		for f in "$TOP"/lib/expat/lib/xmlparse.c "$TOP"/lib/expat/lib/xmltok.c \
		    "$TOP"/lib/expat/lib/xmlrole.c "$TOP"/lib/bearssl/src/*/*.c \
		    "$TOP"/lib/bearssl/src/settings.c; do
			# shellcheck disable=SC2086 # words
			$CC -O1 -w -DXML_DEV_URANDOM -DXML_NS -DXML_DTD -DXML_CONTEXT_BYTES=1024 \
			    -I. -I"$TOP/lib/bearssl/src" $CPPFLAGS -c "$f" || exit
		done
	) || return
	LIBS=$(echo "$objs"/*.o)
	export LIBS
}

# A compiler and its flags; what runs the program if this machine cannot; `own' if
# the libraries have to be compiled, too.
variant() {
	name=$1 CC=$2 CFLAGS=$3 LDFLAGS=$4 WRAPPER=$5
	TOP=$TESTDIR
	TESTDIR=$TESTDIR/v.$(echo "$name" | tr -c 'a-z0-9\n' .)
	mkdir "$TESTDIR"
	export CC CFLAGS LDFLAGS WRAPPER TESTDIR
	if [ "$6" = own ] && [ ! -d "$TOP/lib/expat/lib" ]; then
		echo "ok - $name # skipped: there are no sources of the libraries"
		return
	elif [ "$6" = own ]; then
		libraries || { echo "not ok - the libraries, $name"; return; }
	fi
	[ "$name" != bmake ] || export MAKE=bmake
	# all with a scripted server, but for those that look at the usual build
	for t in ${only:-$(tests | sed -n '/^tls_/p;/^nothing_else/,/^cut_connections/p' | grep -v \
	    -e small_in_memory -e one_turn -e cost -e on_each_expat -e all_addresses)}; do
		run "$t" ", $name"
	done
}

# What they are: their names, then what variant takes.
variants() {
	cat <<-E
	gcc-O0|gcc|-O0|||
	gcc-O3|gcc|-O3|||
	gcc-lto|gcc|-O2 -flto|||
	gcc-fortify|gcc|-O2 -D_FORTIFY_SOURCE=3|||
	gcc-c11|gcc|-O2 -std=c11|||
	gcc-c2x|gcc|-O2 -std=c2x|||
	gcc-static|gcc|-O2|-static||
	clang|clang|-O2|||
	clang-c2x|clang|-O1 -std=c2x|||
	tcc|tcc||||
	bmake|cc|-O2|||
	musl|musl-gcc|-O2|-static||own
	32-bit|i686-linux-gnu-gcc|-O2|-static||own
	powerpc, big-endian|powerpc-linux-gnu-gcc|-O2|-static|qemu-ppc|own
	aarch64|aarch64-linux-gnu-gcc|-O2|-static|qemu-aarch64|own
	E
}

# Other compilers, flags, C libraries and processors, or those whose name begins
# so, three at once, as the tests mostly wait. Then the tests, if not all.
portable() {
	which=${1-}
	[ $# = 0 ] || shift
	only=$*
	variants | grep -q "^$which" || { echo "no such variant: $which"; exit 1; }
	command -v qemu-ppc >/dev/null || { echo "needs more packages: see README"; exit 1; }
	library_sources || echo "the sources of the libraries cannot be had"
	for i in 0 1 2; do
		variants | grep "^$which" | awk -v i=$i 'NR % 3 == i' |
			while IFS='|' read -r name cc cflags ldflags runner libs; do
				(variant "$name" "$cc" "$cflags" "$ldflags" "$runner" "$libs") \
				    >"$TESTDIR/out.$name" 2>&1 </dev/null
			done &
	done
	wait
	cat "$TESTDIR"/out.*
	skipped=$(cat "$TESTDIR"/out.* | grep -c "# skipped") || :
	passed=$(($(cat "$TESTDIR"/out.* | grep -c "^ok") - skipped))
	failed=$(cat "$TESTDIR"/out.* | grep -c "^not ok") || :
}

passed=0 failed=0 skipped=0
case ${1-} in
list) tests; exit ;;
soak) soak "${2-60}"; exit ;;
fuzz) fuzz "${2-60}"; exit ;;
bench) bench; exit ;;
inside) inside "$2"; exit ;;
demo) demo; exit ;;
portable)
	shift
	portable "$@"
	;;
'')
	for t in $(tests); do
		run "$t" ""
	done
	CFLAGS="-g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all"
	export CFLAGS
	for t in $(tests | sed '/^compiles_/,$d'); do
		run "$t" ", with sanitizers"
	done
	unset CFLAGS
	on_prosody=$(awk '/^# ---- tests/, /^# ---- the demo/ {
		if (/\(\) \{$/)
			name = $1
		if (/^	(week |chat |ugly_stanzas )?prosody$/)
			print name
	}' test.sh | tr -d '()' | uniq)
	export TLS
	TLS=own
	for t in $on_prosody; do
		run "$t" ", over TLS"
	done
	# what is before the server still listens when that does not
	TLS=front
	for t in $(echo "$on_prosody" | grep -v restarts) byte_by_byte thousands_at_once \
	    many_fail_at_once too_large escapes_are_few liveness back_pressure \
	    a_fresh_parser_loses_nothing memory_stays_bounded; do
		run "$t" ", TLS before the server"
	done
	unset TLS
	WRAPPER="valgrind -q --leak-check=full --error-exitcode=9"
	export WRAPPER
	for t in exchange each_resource_gets_its_share jitsi_meet the_server_restarts \
	    $(tests | grep ^tls_) \
	    $(tests | sed -n '/^nothing_else/,/^signals/p') \
	    a_fresh_parser_loses_nothing liveness forbidden_xml wrong_streams cut_connections; do
		run "$t" ", with valgrind"
	done
	;;
*)
	for t in "$@"; do
		run "$t" ""
	done
	;;
esac
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
