#!/bin/sh
# client_proxy's tests and its demo. See LICENSE file for copyright and license.
#
#	./test.sh            all tests, many of them again with sanitizers, TLS, valgrind
#	./test.sh NAME...    these tests only, as the list below names them
#	./test.sh list       the names
#	./test.sh simulate [SECONDS [SEED]]
#	                     the program in a simulated world where all goes wrong;
#	                     0 seconds: one seed, with all that happens in it;
#	                     -N: so many seeds for each of three sizes;
#	                     failed: seeds that have found planted slips
#	./test.sh unreached [SECONDS [SEED]]
#	                     lines of client_proxy.c that this never reaches
#	./test.sh sanitize [SECONDS [SEED]]
#	                     simulate with address and undefined sanitizers
#	./test.sh fuzz [SECONDS]
#	./test.sh soak [SECONDS]
#	./test.sh storm [SECONDS [SERVER]]
#	                     requests while workers are killed, one each second
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
		sed "s|^\\(static const .* ${s%%=*}[][]* *= \\)[^;]*;|\\1${s#*=};|
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
	modules_enabled = { "roster", "saslauth", "disco", "smacks"$mux }
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
	  mod_stream_mgmt: {}
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
	for on in "$@"; do
		tell srv "<presence from='service@localhost/$on' to='proxy.localhost'/>"
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
#	peer steady PORT USER RESOURCE TO N RATE [TYPE]
#	        the same, but so many a second, of this type, and tell how many
#	        milliseconds the slowest has taken
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
static int window = 100, delay, first, last, rate;
static char seen[1000000];      /* by id */
static long long now, begun, quietsince, slowest, sentat[1000000];
static const char *asked = "get";
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
	sentat[sent % 1000000] = now;
	say("<iq type='%s' id='%d' to='%s'><query xmlns='test'/></iq>", asked, sent++, to);
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
		begun = now;
		if (!asker)
			say("<presence/>");
		while (asker && !rate && sent < wanted && sent < window)
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
		if (now - sentat[atoi(id) % 1000000] > slowest)
			slowest = now - sentat[atoi(id) % 1000000];
		if (!rate && sent < wanted)
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
	int i, n, quiet = 0, left;

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
	asker = !strcmp(argv[1], "asker") || !strcmp(argv[1], "steady");
	host = asker ? "localhost" : argv[4];
	resource = argv[asker ? 4 : 5];
	if (asker) {
		to = argv[5];
		wanted = atoi(argv[6]);
		if (!strcmp(argv[1], "steady"))
			rate = atoi(argv[7]);
		else if (argc > 7)
			window = atoi(argv[7]);
		if (argc > 8)
			asked = argv[8];
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
		now = ms;
		if (!quietsince)
			quietsince = ms;
		while (rate && ready && sent < wanted && begun + sent * 1000LL / rate <= ms) {
			request();
			quietsince = ms;
		}
		/* when all have an answer, does one get another? */
		quiet = asker && answered + errors == wanted;
		left = (int)((quiet ? 500 : 5000) - (ms - quietsince));
		if (rate && ready && sent < wanted)
			left = 1;
		n = poll(&p, 1, asker ? left > 0 ? left : 0 : due ? (int)(due - ms) : -1);
		if (leaving == 1 && leaving++)
			say("<presence type='unavailable'/>");
		if (n > 0)
			quietsince = ms;
		if (n < 0 || (n == 0 && (due || (rate && ready && sent < wanted))))
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
	if (rate)
		printf("; slowest %lld ms", slowest);
	printf("; %d twice\n", twice);
	return answered + errors != wanted || twice > 0;
}
END

# A worker that uses a library: its resource and what it is, slixmpp, slixmpp-sm
# with stream management, or twisted, which answers no pings.
library_worker() {
	lib_worker=$TESTDIR/worker.py
	[ -f "$lib_worker" ] ||
		sed -n '/^: <<.*worker.py/,/^END/p' test.sh | sed '1d;$d' >"$lib_worker"
	background python3 "$lib_worker" "$c2s" "$1" "$2" >>"$dir/$1.python" 2>&1
	logged "joined: service@localhost/$1:"
}

: <<\END # worker.py
import sys

port, resource, kind = int(sys.argv[1]), sys.argv[2], sys.argv[3]
account = "service@localhost/" + resource


def slixmpp_worker():
    import slixmpp
    from slixmpp.xmlstream.handler import Callback
    from slixmpp.xmlstream.matcher import MatchXPath

    worker = slixmpp.ClientXMPP(account, "pw", sasl_mech="PLAIN")
    worker["feature_mechanisms"].unencrypted_plain = True
    worker.register_plugin("xep_0199")
    if kind == "slixmpp-sm":
        worker.register_plugin("xep_0198")
        worker.add_event_handler("sm_enabled", lambda s: print("sm", flush=True))

    def answer(iq):
        reply = iq.reply()
        reply.append(slixmpp.ET.fromstring("<query xmlns='test' by='%s'/>" % resource))
        reply.send()

    worker.register_handler(Callback("test", MatchXPath("{jabber:client}iq/{test}query"), answer))
    worker.add_event_handler("session_start", lambda e: worker.send_presence())
    worker.connect(("127.0.0.1", port), force_starttls=False, disable_starttls=True)
    worker.process(forever=True)


def twisted_worker():
    from twisted.internet import reactor
    from twisted.words.protocols.jabber import client, jid, xmlstream
    from twisted.words.xish import domish

    stream = xmlstream.XmlStreamFactory(client.XMPPAuthenticator(jid.JID(account), "pw"))

    def connected(xs):
        xs.initializers[1].required = False   # there is no TLS

    def answer(xs, iq):
        reply = xmlstream.toResponse(iq, "result")
        reply.addElement(("test", "query"))["by"] = resource
        xs.send(reply)

    def ready(xs):
        xs.addObserver("/iq/query[@xmlns='test']", lambda iq: answer(xs, iq))
        xs.send(domish.Element((None, "presence")))

    stream.addBootstrap(xmlstream.STREAM_CONNECTED_EVENT, connected)
    stream.addBootstrap(xmlstream.STREAM_AUTHD_EVENT, ready)
    stream.addBootstrap(xmlstream.INIT_FAILED_EVENT, lambda f: f.printTraceback())
    reactor.connectTCP("127.0.0.1", port, stream)
    reactor.run()


twisted_worker() if kind == "twisted" else slixmpp_worker()
END

# Workers and a requester that use slixmpp talk on a real Prosody, with relay: what
# they do is in this function of talk.py.
talk() {
	need prosody prosody
	need python3 python3
	python3 -c "import slixmpp" || need - python3-slixmpp
	prosody
	proxy relay=1
	sed -n '/^: <<.*talk.py/,/^END/p' test.sh | sed '1d;$d' >"$dir/talk.py"
	python3 "$dir/talk.py" "$c2s" "$log" "$1"
	unlogged dropped
}

: <<\END # talk.py
import asyncio
import os
import sys

import slixmpp
from slixmpp.xmlstream.handler import Callback
from slixmpp.xmlstream.matcher import MatchXPath

port, log, what = int(sys.argv[1]), sys.argv[2], sys.argv[3]
proxy, user_jid, there = "proxy.localhost", "user@localhost/x", "proxy.localhost/user@localhost/x"


async def login(jid):
    client = slixmpp.ClientXMPP(jid, "pw", sasl_mech="PLAIN")
    client["feature_mechanisms"].unencrypted_plain = True
    for plugin in "xep_0030", "xep_0085", "xep_0092", "xep_0184":
        client.register_plugin(plugin)
    client.register_plugin("xep_0047", {"auto_accept": True})
    client.connect(("127.0.0.1", port), force_starttls=False, disable_starttls=True)
    await client.wait_until("session_start")
    client.send_presence()
    return client


async def worker(name):
    client = await login("service@localhost/" + name)
    while "joined: service@localhost/%s:" % name not in open(log).read():
        await asyncio.sleep(0.05)
    return client


# The requester: whatever he gets, nothing tells him who is behind the address.
async def user():
    def look(stanza):
        if isinstance(stanza, (slixmpp.Message, slixmpp.Iq, slixmpp.Presence)):
            assert "service@" not in str(stanza), stanza
            assert stanza["from"].domain == "localhost" or stanza["from"] == proxy, stanza
        return stanza

    client = await login(user_jid)
    client.add_filter("in", look)
    return client


# 30,000 bytes each way, at the same time, over the session that the requester opens.
async def bytestream():
    a, u = await worker("a"), await user()
    opened = asyncio.ensure_future(a.wait_until("ibb_stream_start"))
    closed = asyncio.ensure_future(a.wait_until("ibb_stream_end"))
    mine = await u["xep_0047"].open_stream(proxy)
    its = await opened
    assert its.peer_jid == there and mine.peer_jid == proxy
    up, down = os.urandom(30000), os.urandom(30000)
    got = await asyncio.gather(its.gather(29999), mine.gather(29999), mine.sendall(up), its.sendall(down))
    assert got[0] == up and got[1] == down
    await mine.close()
    await closed


# The worker asks for the requester's version and features, and for what he has not.
async def questions():
    a, u = await worker("a"), await user()
    u["xep_0092"].software_name = "it's & me"
    version = await a["xep_0092"].get_version(there)
    assert version["from"] == there and version["software_version"]["name"] == "it's & me", version
    info = await a["xep_0030"].get_info(there)
    assert info["from"] == there and "jabber:iq:version" in info["disco_info"]["features"], info
    try:
        await a.make_iq_get(ito=there, queryxmlns="test").send()
        raise AssertionError("an answer")
    except slixmpp.exceptions.IqError as e:
        assert e.condition == "feature-not-implemented" and e.iq["from"] == there


# Both ways: text, thread, chat states, and receipts that come by themselves.
async def chat():
    a, u = await worker("a"), await user()
    for me, it, to, name in (u, a, proxy, there), (a, u, there, proxy):
        message = me.make_message(to, "hi & <bye>", mtype="chat")
        message["thread"] = "t1"
        message["chat_state"] = "active"
        message["request_receipt"] = True
        receipt = asyncio.ensure_future(me.wait_until("receipt_received"))
        heard = asyncio.ensure_future(it.wait_until("message"))
        message.send()
        heard, receipt = await heard, await receipt
        assert heard["from"] == name and heard["id"] == message["id"], heard
        assert heard["body"] == "hi & <bye>" and heard["thread"] == "t1", heard
        assert heard["chat_state"] == "active" and heard["type"] == "chat", heard
        assert receipt["from"] == to and receipt["receipt"] == message["id"], receipt
        state = me.make_message(to, mtype="chat")
        state["chat_state"] = "composing"
        seen = asyncio.ensure_future(it.wait_until("chatstate_composing"))
        state.send()
        assert (await seen)["from"] == name


# Two workers ask at once with the same id; he answers the later one first.
async def equal_ids():
    a, b, u = await worker("a"), await worker("b"), await user()
    asked = []

    def hear(iq):
        asked.append(iq)
        for iq in reversed(asked if len(asked) == 2 else []):
            reply = iq.reply()
            reply.append(slixmpp.ET.Element("{test}query", {"to": iq["id"]}))
            reply.send()

    u.register_handler(Callback("test", MatchXPath("{jabber:client}iq/{test}query"), hear))

    async def ask(client):
        iq = client.make_iq_get(ito=there, queryxmlns="test")
        iq["id"] = "same"
        answer = await iq.send()
        assert answer["from"] == there and answer["id"] == "same", answer
        return answer.xml.find("{test}query").get("to")

    assert await asyncio.gather(ask(a), ask(b)) == ["a/same", "b/same"]


asyncio.get_event_loop().run_until_complete(asyncio.wait_for(globals()[what](), 60))
END

# The simulated world around client_proxy.c. Its first part is the config.h. The
# sizes are one of three: small, the defaults, in between; the seed says which.
#	world SECONDS SEED STEP
#	        run the seeds SEED, SEED + STEP, ... for so long; with 0 seconds only
#	        SEED, and tell every event; with -N instead N of them
# Build it in the three sizes, with a name, a compiler and flags: $world.0 and so on.
build_world() {
	world=$TESTDIR/world/$1
	mkdir -p "$world"
	sed -n '/^: <<.*world.c/,/^END/p' test.sh | sed '1d;$d' >"$world/world.c"
	cp client_proxy.c "$world"
	printf '#define WORLDCONFIG\n#include "world.c"\n#undef WORLDCONFIG\n' >"$world/config.h"
	for size in 0 1 2; do
		[ ! -x "$world.$size" ] || continue
		# the program is a unit of its own: no name of it meets one of the world's
		for part in PROGRAM WORLD; do
			# shellcheck disable=SC2086 # words
			$2 -std=gnu99 -w -g $3 "-D$part" "-DBUILD=$size" '-DVERSION="world"' \
			    -c -o "$world/$part.o" "$world/world.c" || return
		done
		# shellcheck disable=SC2086 # words
		$2 $3 -o "$world.$size" "$world/PROGRAM.o" "$world/WORLD.o" -lexpat -lbearssl || return
	done
}

: <<\END # world.c
/* See LICENSE file for copyright and license details.
 *
 * A world for client_proxy: its real main() runs here with the system calls
 * below it replaced. There is a network, a server, workers, requesters, a log
 * and signals, all simulated, all faulty, all from the random numbers of one
 * seed; time passes only in poll, in look-ups and in faults. A model of the man
 * page, which shares no line with the program, says what each stanza that it
 * reads must bring out, and checks every byte, mask, time and log line.
 */
#ifdef WORLDCONFIG
/* This part is the program's config.h: settings vary with the seed, sizes with
 * the build. A new setting has its place here and in settle(). */
extern const char *domain, *secret, *target, *host, *port, *tlspin, *prefix;
extern int choice, relay;
extern unsigned int keepalive, backoffmax, patience, askmin, askmax, refresh;
extern unsigned int answertime, stall, retry, sticktime;

#define SIZE(small, usual, middle) (BUILD == 0 ? small : BUILD == 1 ? usual : middle)
enum {
	MAXRESOURCES = SIZE(4, 1024, 40),
	MAXREQUESTS  = SIZE(6, 4096, 64),
	REQUESTSIZE  = SIZE(200, 1024, 1024),
	MAXSTANZA    = SIZE(4096, 524288, 65536),
	OUTSIZE      = SIZE(20480, 1048576, 85536),
	INSIZE       = SIZE(300, 131072, 4096),
	PARSERSOFT   = SIZE(24576, 1048576, 131072),
	PARSERHARD   = SIZE(28 * 8192, 7340032, 28 * 65536)
};
#else

#define _POSIX_C_SOURCE 200809L
#ifndef PROGRAM
#define _DEFAULT_SOURCE                 /* MAP_ANONYMOUS */
#endif

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <malloc.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <setjmp.h>
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

int w_socket(int, int, int), w_connect(int, const struct sockaddr *, socklen_t);
int w_getsockopt(int, int, int, void *, socklen_t *);
int w_fcntl(int, int, ...), w_poll(struct pollfd *, nfds_t, int);
ssize_t w_read(int, void *, size_t), w_write(int, const void *, size_t);
int w_shutdown(int, int), w_close(int);
int w_getaddrinfo(const char *, const char *, const struct addrinfo *, struct addrinfo **);
void w_freeaddrinfo(struct addrinfo *);
int w_getnameinfo(const struct sockaddr *, socklen_t, char *, socklen_t, char *, socklen_t, int);
int w_clock_gettime(clockid_t, struct timespec *);
int w_sigaction(int, const struct sigaction *, struct sigaction *);
void (*w_signal(int, void (*)(int)))(int);
void w_exit(int, int), *w_realloc(void *, size_t), w_free(void *);
void w_elements(XML_Parser, XML_StartElementHandler, XML_EndElementHandler);
const char *w_made(unsigned long long *, size_t *);
enum { WAKER = 3, WAKEW = 4, FIRSTFD = 5 };

#ifdef PROGRAM
#define socket(a, b, c)          w_socket(a, b, c)
#define connect(a, b, c)         w_connect(a, b, c)
#define getsockopt(a, b, c, d, e) w_getsockopt(a, b, c, d, e)
#define fcntl(...)               w_fcntl(__VA_ARGS__)
#define poll(a, b, c)            w_poll(a, b, c)
#define read(a, b, c)            w_read(a, b, c)
#define write(a, b, c)           w_write(a, b, c)
#define shutdown(a, b)           w_shutdown(a, b)
#define close(a)                 w_close(a)
#define getaddrinfo(a, b, c, d)  w_getaddrinfo(a, b, c, d)
#define freeaddrinfo(a)          w_freeaddrinfo(a)
#define getnameinfo(a, b, c, d, e, f, g) w_getnameinfo(a, b, c, d, e, f, g)
#define clock_gettime(a, b)      w_clock_gettime(a, b)
#define sigaction(a, b, c)       w_sigaction(a, b, c)
#define signal(a, b)             w_signal(a, b)
#define exit(a)                  w_exit(a, 0)
#define _exit(a)                 w_exit(a, 1)
#define pipe(a)                  ((a)[0] = WAKER, (a)[1] = WAKEW, 0)
#define open(a, b)               WAKER
#define setsockopt(a, b, c, d, e) 0
#define setrlimit(a, b)          0
#define malloc_trim(a)           0
#define realloc(a, b)            w_realloc(a, b)
#define free(a)                  w_free(a)
#define XML_SetElementHandler(a, b, c) w_elements(a, b, c)
#define main                     client_proxy
/* the world does not have these */
#pragma GCC poison recv send sendmsg recvmsg readv writev select malloc calloc
#pragma GCC poison nanosleep usleep sleep

#ifdef INPROCESS
#pragma clang section bss = "cpbss" data = "cpdata"
#endif
#include "client_proxy.c"

/* What it has put into its buffer and not all written: *len bytes, and how many
 * before them. */
const char *
w_made(unsigned long long *before, size_t *len)
{
	*before = bytesout;
	*len = out.len;
	return out.s;
}
#else /* what follows is the world */

#define WORLDCONFIG
#include "world.c"
#undef WORLDCONFIG

const char *domain, *secret, *target, *host, *port, *tlspin, *prefix;
int choice, relay;
unsigned int keepalive, backoffmax, patience, askmin, askmax, refresh;
unsigned int answertime, stall, retry, sticktime;
enum { RANDOM, STICKY, LEASTBUSY, STANDBY };

extern char __start_cpbss[], __stop_cpbss[], __start_cpdata[], __stop_cpdata[];
int client_proxy(int, char **);

#define COMPONENTNS "jabber:component:accept"
#define STREAMSNS   "http://etherx.jabber.org/streams"
#define STANZASNS   "urn:ietf:params:xml:ns:xmpp-stanzas"
#define FOREVER     LLONG_MAX
#define COUNT(x)    (sizeof(x) / sizeof((x)[0]))
#define MIN(a, b)   ((a) < (b) ? (a) : (b))
#define MAX(a, b)   ((a) > (b) ? (a) : (b))

/* ---- chance ---- */

/* What a world can have in it; each seed picks some: in percent of what the
 * wildness gives. Those that hurt all else that happens in a world are rare. */
#define EACHBEHAVIOUR(X) \
	X(TLS, 100) X(SPLIT, 150) X(SHORT, 100) X(AGAIN, 100) X(SLOWLINK, 60) \
	X(STALL, 100) X(SMALLBUF, 100) X(CUT, 80) X(RESET, 60) X(LOSS, 60) \
	X(REFUSE, 80) X(SILENT, 60) X(NORESOLVE, 50) X(SLOWRESOLVE, 40) X(ASLEEP, 60) \
	X(SLOWCALL, 40) X(STREAMERR, 60) X(BADSHAKE, 60) X(RESTART, 80) X(PRERROR, 80) \
	X(ROSTERLOST, 50) X(UNSUB, 60) X(UNREACH, 60) X(NOPROBE, 40) X(LATEPROBE, 60) \
	X(PARTPROBE, 60) X(DECLS, 100) X(ODDNS, 80) X(WHITE, 80) X(HUGE, 60) \
	X(BROKEN, 50) X(HUNG, 100) X(SLOW, 100) X(DIE, 120) X(HIBERNATE, 80) \
	X(REPLACE, 60) X(TWICE, 60) X(WRONG, 80) X(ERRORS, 80) X(FLOOD, 80) \
	X(ODDID, 100) X(ODDJID, 100) X(ODDTYPE, 80) X(MESSAGE, 100) X(PRESENCE, 80) \
	X(STRAY, 80) X(USR1, 80) X(LOGBLOCK, 40) X(LOGFULL, 20) X(LOGCLOSED, 20) \
	X(ALLOC, 30) X(ASKED, 80) X(MANY, 20) X(SIGNALS, 80) X(TRICKLE, 30) X(KICK, 40) \
	X(TLSBAD, 20) X(DENY, 40) X(FOREIGN, 80) X(OVERFLOW, 60) X(BOUNCE, 80) \
	X(BIGPRES, 40) X(NOTHING, 0)
#define NAME(name, weight) name,
#define ENTRY(name, weight) { #name, weight },
enum { EACHBEHAVIOUR(NAME) BEHAVIOURS };
static const struct {
	const char *name;
	unsigned weight;
} behaviours[] = { EACHBEHAVIOUR(ENTRY) };

/* What is told of all worlds at the end. */
static struct total {
	struct {
		const char *what;
		long n;
	} counts[160];
	long worlds, moved;     /* so many have moved to who joined */
	double hours, stayed;   /* and so many should have, who have not */
	uint64_t hash;
} *total;
static const char *without = "", *with = "", *masked = ""; /* for hunting */
static int verbose;
static jmp_buf ending;
static const unsigned char *fuzzbytes;
static size_t nfuzzbytes;

#ifdef INPROCESS
static char *saved;             /* what the program's data were at first */
/* Everything that follows begins anew with each world. */
#pragma clang section bss = "wbss"
extern char __start_wbss[], __stop_wbss[];
#endif
static char on[BEHAVIOURS];
static int wild, healed;
static uint64_t chance, theseed, tracehash, entropy;

static int
eq(const char *a, const char *b)
{
	return a == b || (a && b && !strcmp(a, b));
}

static void
count(const char *what)
{
	size_t i;

	for (i = 0; total->counts[i].what && !eq(total->counts[i].what, what); i++)
		;
	total->counts[i].what = what;
	total->counts[i].n++;
}

static uint64_t
scramble(uint64_t h)
{
	h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9;
	h = (h ^ h >> 27) * 0x94d049bb133111eb;
	return h ^ h >> 31;
}

/* A random number below n. The fuzzer's bytes, while there are any, decide. */
static unsigned
rnd(unsigned n)
{
	unsigned r = 0, m;

	if (n < 2)
		return 0;
	if (nfuzzbytes > 0) {
		for (m = n - 1; m && nfuzzbytes > 0; m >>= 8, nfuzzbytes--)
			r = r << 8 | *fuzzbytes++;
		return r % n;
	}
	chance += 0x9e3779b97f4a7c15;
	return (unsigned)((scramble(chance) >> 32) * n >> 32);
}

/* 1 so many times out of a thousand. */
static int
often(unsigned permille)
{
	return rnd(1000) < permille;
}

/* A number from lo to hi, small ones as likely as large ones. */
static unsigned
spread(unsigned lo, unsigned hi)
{
	unsigned top = lo + 1;

	while (top < hi && rnd(4))
		top = MIN(top * 2, hi);
	return lo + rnd(MIN(top, hi) - lo + 1);
}

/* 1 if it is in this world, before its faults stop, and now. */
static int
fault(int behaviour, unsigned permille)
{
	if (!on[behaviour] || healed || !often(permille))
		return 0;
	count(behaviours[behaviour].name);
	return 1;
}

/* ---- memory of the world, freed at its end as a whole ---- */

static struct chunk {
	struct chunk *next;
	size_t size, used;
	char bytes[];
} *chunks;

static void *
mem(size_t n)
{
	struct chunk *k = chunks;
	size_t size;

	n = (n + 15) & ~(size_t)15;
	if (!k || k->size - k->used < n) {
		size = MAX(n, 1 << 18);
		if (!(k = malloc(sizeof(*k) + size)))
			abort();
		*k = (struct chunk){ chunks, size, 0 };
		chunks = k;
	}
	k->used += n;
	return memset(k->bytes + k->used - n, 0, n);
}

static char *
copy(const char *s)
{
	return s ? strcpy(mem(strlen(s) + 1), s) : NULL;
}

static char *
fmt(const char *f, ...)
{
	va_list ap;
	char *s;

	va_start(ap, f);
	s = mem((size_t)vsnprintf(NULL, 0, f, ap) + 1);
	va_end(ap);
	va_start(ap, f);
	vsprintf(s, f, ap);
	va_end(ap);
	return s;
}

/* A string of n bytes c. */
static char *
repeat(int c, size_t n)
{
	return memset(mem(n + 1), c, n);
}

/* Make room in an array of *cap elements, of which so many are used, for more. */
static void *
room(void *old, size_t used, size_t more, size_t *cap, size_t each)
{
	void *p;

	if (used + more <= *cap)
		return old;
	*cap = (used + more) * 2 + 64;
	p = mem(*cap * each);
	return used ? memcpy(p, old, used * each) : p;
}

/* 1 if name is in a list with commas. */
static int
listed(const char *list, const char *name)
{
	const char *s;

	for (s = list; (s = strstr(s, name)); s++)
		if ((s == list || s[-1] == ',') && strchr(",", s[strlen(name)]))
			return 1;
	return 0;
}

static uint64_t
fnv(uint64_t h, const void *s, size_t n)
{
	const unsigned char *p = s;

	for (; n > 0; n--)
		h = (h ^ *p++) * 0x100000001b3;
	return h;
}

static uint64_t
hashstring(uint64_t h, const char *s)
{
	return fnv(h, s, strlen(s) + 1);
}

/* ---- what has happened, for the reader of a failure ---- */

enum { RING = 60, LINE = 240 };
static char ring[RING][LINE];
static unsigned long nring;
static long long vt, slept;     /* virtual ms; when the program last was asleep */
static long long paused;        /* when it last did not read, or was asleep */
static int running, spoilt;
static const char *settings;

static void
note(const char *f, ...)
{
	char *line = ring[nring++ % RING];
	va_list ap;
	int n;

	n = snprintf(line, LINE, "%6lld.%03lld  ", vt / 1000, vt % 1000);
	va_start(ap, f);
	vsnprintf(line + n, (size_t)(LINE - n), f, ap);
	va_end(ap);
	tracehash = fnv(tracehash, line, strlen(line));
	if (verbose)
		fprintf(stderr, "%s\n", line);
}

/* Something does not hold. What is masked is passed over. */
static void
bad(const char *what, const char *f, ...)
{
	unsigned long i;
	va_list ap;

	if (listed(masked, what))
		return;
	for (i = nring > RING ? nring - RING : 0; !verbose && i < nring; i++)
		fprintf(stderr, "%s\n", ring[i % RING]);
	fprintf(stderr, "FAILED [%s] at %lld.%03lld: ", what, vt / 1000, vt % 1000);
	va_start(ap, f);
	vfprintf(stderr, f, ap);
	va_end(ap);
	fprintf(stderr, "\nseed %llu, build %d, wild %d: %s\n",
	        (unsigned long long)theseed, BUILD, wild, settings);
#ifdef FUZZ
	abort();
#endif
	_exit(1);
}

/* ---- events to come ---- */

static struct event {
	struct event *next;
	long long when;
	void (*what)(void *, long);
	void *ptr;
	long arg;
	unsigned gen;           /* of the connection; 0: of any */
} *events, *spare;              /* in the order of time; that are over */
static unsigned generation;

static void
at(long long when, void (*what)(void *, long), void *ptr, long arg, unsigned gen)
{
	struct event *e = spare, **place = &events;

	if (e)
		spare = e->next;
	else
		e = mem(sizeof(*e));
	when = MAX(when, vt);
	while (*place && (*place)->when <= when)
		place = &(*place)->next;
	*e = (struct event){ *place, when, what, ptr, arg, gen };
	*place = e;
}

static long long
nextevent(void)
{
	return events ? events->when : FOREVER;
}

static void speak(void);

/* Do the next event. */
static void
happen(void)
{
	struct event *first = events, e = *first;

	events = e.next;
	first->next = spare;
	spare = first;
	vt = MAX(vt, e.when);
	if (!e.gen || e.gen == generation)
		e.what(e.ptr, e.arg);
	speak();
}

/* Let time pass until t, with all that happens. */
static void
pass(long long t)
{
	while (nextevent() <= t)
		happen();
	vt = MAX(vt, t);
}

/* An event: a variable gets a value. */
static void
set(void *variable, long value)
{
	*(int *)variable = (int)value;
}

/* ---- stanzas, as both directions are seen ---- */

XML_Bool XML_SetReparseDeferralEnabled(XML_Parser, XML_Bool);
#pragma weak XML_SetReparseDeferralEnabled

enum { KCARBON = 1, KBODY = 2, KFLEET = 4, KPING = 8 };
static const struct {
	const char *name, *xmlns;       /* NULL: any */
	unsigned flag;
} children[] = {
	{ "sent", "urn:xmpp:carbons:2", KCARBON },
	{ "received", "urn:xmpp:carbons:2", KCARBON },
	{ "body", NULL, KBODY },
	{ "ping", NULL, KPING },
	{ NULL, "http://jabber.org/protocol/chatstates", KFLEET },
	{ NULL, "urn:xmpp:receipts", KFLEET },
	{ NULL, "urn:xmpp:chat-markers:0", KFLEET }
};

struct stanza {
	const char *kind, *type, *id, *from, *to;
	int nons;               /* in a namespace that is nobody's */
	uint64_t pay;           /* hash of all content and other attributes */
	size_t rest;            /* bytes of that, written as sparely as can be */
	size_t tag;             /* bytes of its largest tag, as it came */
	size_t elements;        /* in it */
	unsigned flags;
	char cond[48], etype[16], show[8]; /* of an error, of presence */
	long long end;          /* where it ends, in bytes of the connection */
};

/* One direction of a stream. */
struct seen {
	XML_Parser p;
	void (*opened)(const char **, int), (*got)(struct stanza *), (*end)(const char *);
	int depth, open, dead, isout, stopping;
	struct stanza s;
	int inerror, inshow;
	uint64_t h;             /* of the content so far */
	int brackets;           /* ] in a row were written last */
	struct { const char *name, *value; } decl[16]; /* of prefixes, in the header */
	size_t ndecl;
	size_t fed;
	size_t owed;            /* bytes of white space that have to follow a large tag */
};
static struct seen sin_, sout;

/* What s takes as the value of an attribute, with name, space, = and quotes. */
static size_t
attrbytes(const char *name, const char *s)
{
	size_t n = strlen(name) + 4, apos = 0, quot = 0;

	for (; *s; s++) {
		n += *s == '&' || *s == '\n' || *s == '\r' ? 5 : *s == '<' || *s == '\t' ? 4 : 1;
		apos += *s == '\'';
		quot += *s == '"';
	}
	return n + 5 * MIN(apos, quot);
}

/* Bytes of a stanza's start. */
static size_t
headbytes(const char *kind, const char *type, const char *id, const char *from, const char *to)
{
	return 1 + strlen(kind) + (type ? attrbytes("type", type) : 0) +
	       (id ? attrbytes("id", id) : 0) + attrbytes("from", from) + attrbytes("to", to);
}

static const char *
attribute(const char **a, const char *name)
{
	for (; *a; a += 2)
		if (eq(*a, name))
			return a[1];
	return NULL;
}

/* The stream ends, as it should (NULL) or why. */
static void
stop(struct seen *d, const char *why)
{
	if (!d->stopping)
		d->end(why);
	d->stopping = 1;
}

/* What is owed of white space behind a large tag has to be there by now. */
static void
checkwhite(const struct seen *d)
{
	if (d->isout && d->owed > 0)
		bad("white", "%zu bytes of white space lack behind a tag of %zu: Prosody's expat holds it",
		    d->owed, d->s.tag);
}

/* A tag has an attribute that is passed on. */
static void
onattribute(struct seen *d, uint64_t *sum, const char *name, const char *value)
{
	d->s.rest += attrbytes(name, value);
	*sum += scramble(hashstring(hashstring(0x9ae16a3b2f90404f, name), value));
}

/* A stanza begins. */
static void
onstanza(struct seen *d, uint64_t *sum, const char *name, const char **a)
{
	struct stanza *s = &d->s;
	const char *xmlns = attribute(a, "xmlns");
	size_t i;

	checkwhite(d);
	memset(s, 0, sizeof(*s));
	s->kind = copy(name);
	s->from = copy(attribute(a, "from"));
	s->to = copy(attribute(a, "to"));
	s->type = copy(attribute(a, "type"));
	s->id = copy(attribute(a, "id"));
	s->nons = xmlns && !listed(COMPONENTNS ",jabber:client,jabber:server", xmlns);
	d->h = 0xcbf29ce484222325;
	d->inerror = d->inshow = 0;
	/* what the header declares is declared on it */
	for (i = 0; i < d->ndecl; i++)
		if (!attribute(a, d->decl[i].name))
			onattribute(d, sum, d->decl[i].name, d->decl[i].value);
}

/* An element in a stanza begins. */
static void
onelement(struct seen *d, const char *name, const char **a)
{
	struct stanza *s = &d->s;
	size_t i;

	s->rest += (size_t)d->open + 1 + strlen(name);
	s->elements++;
	d->h = hashstring(fnv(d->h, "\1", 1), name);
	if (d->depth == 3) {
		d->inerror = eq(name, "error");
		d->inshow = eq(name, "show");
		if (d->inerror && attribute(a, "type"))
			snprintf(s->etype, sizeof(s->etype), "%s", attribute(a, "type"));
		for (i = 0; i < COUNT(children); i++)
			if ((!children[i].name || eq(name, children[i].name)) &&
			    (!children[i].xmlns || eq(attribute(a, "xmlns"), children[i].xmlns)))
				s->flags |= children[i].flag;
	}
	if (!*s->cond && (d->depth == 3 ? eq(s->kind, "stream:error") : d->depth == 4 && d->inerror))
		snprintf(s->cond, sizeof(s->cond), "%s", name);
}

static void
onheader(struct seen *d, const char *name, const char **a)
{
	size_t i;

	for (i = 0; a[i]; i += 2)
		if (!strncmp(a[i], "xmlns:", 6) && !eq(a[i], "xmlns:stream") && d->ndecl < COUNT(d->decl)) {
			d->decl[d->ndecl].name = copy(a[i]);
			d->decl[d->ndecl++].value = copy(a[i + 1]);
		}
	d->opened(a, eq(name, "stream:stream") && eq(attribute(a, "xmlns"), COMPONENTNS) &&
	          eq(attribute(a, "xmlns:stream"), STREAMSNS));
}

static void XMLCALL
onstart(void *data, const char *name, const char **a)
{
	struct seen *d = data;
	uint64_t sum = 0;

	d->depth++;
	if (d->stopping)
		return;
	if (d->depth == 1) {
		onheader(d, name, a);
		return;
	}
	if (d->depth == 2)
		onstanza(d, &sum, name, a);
	else
		onelement(d, name, a);
	d->s.tag = MAX(d->s.tag, (size_t)XML_GetCurrentByteCount(d->p));
	for (; *a; a += 2)
		if (d->depth > 2 || !listed("from,to,type,id,xmlns", *a))
			onattribute(d, &sum, a[0], a[1]);
	d->h = fnv(d->h, &sum, sizeof(sum));
	d->open = 1;
	d->brackets = 0;
}

static void XMLCALL
onend(void *data, const char *name)
{
	struct seen *d = data;
	struct stanza *s = &d->s;

	if (--d->depth == 0) {
		stop(d, NULL);
		return;
	}
	if (d->stopping)
		return;
	if (d->depth == 2)
		d->inshow = 0;
	s->rest += d->open ? 2 : 3 + strlen(name);
	d->open = 0;
	d->brackets = 0;
	d->h = fnv(d->h, "\2", 1);
	if (d->depth > 1)
		return;
	s->pay = d->h;
	if (eq(s->type, ""))
		s->type = NULL;
	s->end = XML_GetCurrentByteIndex(d->p) + XML_GetCurrentByteCount(d->p);
	d->got(s);
}

static void XMLCALL
ontext(void *data, const char *t, int n)
{
	struct seen *d = data;
	struct stanza *s = &d->s;
	int i, large;

	if (d->stopping)
		return;
	if (d->depth < 2) {
		d->owed -= MIN(d->owed, (size_t)n);
		for (i = 0; i < n; i++)
			if (!strchr(" \t\r\n", t[i]) && d->isout)
				stop(d, "text between stanzas");
		return;
	}
	s->rest += (size_t)d->open;
	d->open = 0;
	if (d->inshow && strlen(s->show) + (size_t)n < sizeof(s->show))
		strncat(s->show, t, (size_t)n);
	for (i = 0; i < n; i++) {
		large = t[i] == '<' || (t[i] == '>' && d->brackets > 1);
		s->rest += t[i] == '&' || t[i] == '\r' ? 5 : large ? 4 : 1;
		d->brackets = t[i] == ']' ? d->brackets + 1 : 0;
	}
	d->h = fnv(d->h, t, (size_t)n);
}

static void XMLCALL
oncomment(void *data, const char *s)
{
	stop(data, "what XMPP forbids");
}

static void XMLCALL
onpi(void *data, const char *a, const char *b)
{
	stop(data, "what XMPP forbids");
}

static void XMLCALL
ondoctype(void *data, const char *a, const char *b, const char *c, int d)
{
	stop(data, "what XMPP forbids");
}

static void
seenopen(struct seen *d, int isout, void (*opened)(const char **, int),
         void (*got)(struct stanza *), void (*end)(const char *))
{
	if (d->p)
		XML_ParserFree(d->p);
	memset(d, 0, sizeof(*d));
	d->isout = isout;
	d->opened = opened;
	d->got = got;
	d->end = end;
	d->p = XML_ParserCreate("UTF-8");
	XML_SetHashSalt(d->p, 1);
	if (XML_SetReparseDeferralEnabled)
		XML_SetReparseDeferralEnabled(d->p, XML_FALSE);
	XML_SetUserData(d->p, d);
	XML_SetElementHandler(d->p, onstart, onend);
	XML_SetCharacterDataHandler(d->p, ontext);
	XML_SetCommentHandler(d->p, oncomment);
	XML_SetProcessingInstructionHandler(d->p, onpi);
	XML_SetStartDoctypeDeclHandler(d->p, ondoctype);
}

static void
seenfeed(struct seen *d, const char *s, size_t n)
{
	if (d->dead)
		return;
	d->fed += n;
	d->dead = XML_Parse(d->p, s, (int)n, 0) != XML_STATUS_OK;
	if (d->dead)
		stop(d, XML_ErrorString(XML_GetErrorCode(d->p)));
}

/* ---- JIDs, the model's own ---- */

/* 1 if jid is our domain's; *self is its part before the resource, *below the
 * resource or NULL. */
static int
ours(const char *jid, const char **self, const char **below)
{
	size_t n = strcspn(jid, "/");
	const char *bare = fmt("%.*s", (int)n, jid), *atsign = strchr(bare, '@');

	if (self)
		*self = bare;
	if (below)
		*below = jid[n] ? jid + n + 1 : NULL;
	return !(jid[n] && !jid[n + 1]) && !(atsign && (atsign == bare || atsign - bare > 1023)) &&
	       eq(atsign ? atsign + 1 : bare, domain);
}

static int
isours(const char *jid)
{
	return ours(jid, NULL, NULL);
}

static const char *
resof(const char *jid)
{
	const char *s = strchr(jid, '/');

	return s ? s + 1 : NULL;
}

static const char *
bareof(const char *jid)
{
	return fmt("%.*s", (int)strcspn(jid, "/"), jid);
}

/* 1 if two JIDs have the same bare one. */
static int
samebare(const char *a, const char *b)
{
	size_t n = strcspn(a, "/");

	return n == strcspn(b, "/") && !memcmp(a, b, n);
}

static int
oftarget(const char *jid)
{
	return samebare(jid, target);
}

/* The JID that resource x of ours encodes, or NULL. */
static const char *
decode(const char *x)
{
	static const unsigned least[] = { 0, 0x80, 0x800, 0x10000 };
	char *d, *n, hex[3] = "";
	const unsigned char *s;
	unsigned c;
	int more, i;

	if (!x)
		return NULL;
	for (d = n = mem(strlen(x) + 1); *x; n++) {
		*n = *x++;
		if (*n != '%')
			continue;
		if (strspn(x, "0123456789abcdefABCDEF") < 2)
			return NULL;
		memcpy(hex, x, 2);
		*n = (char)strtol(hex, NULL, 16);
		x += 2;
		if (!*n)
			return NULL;
	}
	if (n == d || n - d > 1023)
		return NULL;
	for (s = (unsigned char *)d; (c = *s++);) {
		more = c < 0x80 ? 0 : c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;
		if (c < ' ' || c > 0xf7 || (c >= 0x80 && c < 0xc0))
			return NULL;
		c &= more ? 0x3fu >> more : 0x7fu;
		for (i = 0; i < more; i++, s++) {
			if ((*s & 0xc0) != 0x80)
				return NULL;
			c = c << 6 | (*s & 0x3f);
		}
		if (c < least[more] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000) || c == 0xfffe ||
		    c == 0xffff)
			return NULL;
	}
	return d;
}

/* jid as a resource of ours, or NULL if it is too long. */
static const char *
encode(const char *jid)
{
	char *d = mem(3 * strlen(jid) + 1), *n = d;

	for (; *jid; jid++)
		n += sprintf(n, *jid >= ' ' && *jid <= '~' && *jid != '%' ? "%c" : "%%%02X",
		             (unsigned char)*jid);
	return n - d > 1023 ? NULL : d;
}

static const char *
under(const char *bare, const char *res)
{
	return fmt("%s/%s", bare, res);
}

/* ---- the model: who is online ---- */

enum { OUT, IN, MAYBE };        /* whether the program knows a resource */
struct res {
	struct res *chain, *next;
	const char *name;
	int st;
	int open, risky;        /* requests surely, and maybe, in its hands */
	long long joinedat, left; /* left: it may have been taken out */
	unsigned long joined;   /* number of its joining */
	long long heard;        /* by its presence */
	long long toldgone;     /* the log has said that it left */
	long long svcat, svctime; /* service-unavailable came, and was a reason to probe */
	uint64_t share;         /* of all choices, when last chosen */
	int drains;             /* it shows dnd */
	int pings, doubtful;    /* since it was heard of; it may have been heard of since */
	long long life, lifehi; /* surely, and maybe, heard of, or given its first request */
	long long pinged, wellat; /* its last ping; since then it has not been set aside */
	unsigned long passed, changes; /* gets given to others since the last ping; who has
	                                * come or gone before */
};
static struct res *resbuckets[4096], *resources;
static long nin, nmaybe;        /* of them */
static unsigned long njoins, nleft;
static uint64_t shares;

/* The subscription, and what the program has asked. Times are -1 for never. */
static const char *askids[4];   /* the last ones */
static unsigned long nasks, nsince; /* asks; since it was subscribed */
static int msub, sawpres;       /* sawpres: presence has come since */
static long long probe0, probe1, probe2, anyheard, lastask, deniedat;
static int lastprobe, npings;   /* the last ask was a probe; pings that went with it */
static enum { OPEN, DENIED, UNREACHED } probeend; /* how it is over */
static int doubted, unans;      /* one has left, maybe; a probe was unanswered, maybe */
static int mayask;              /* there is a reason to ask again */
static int counts, clean1;      /* of the last probe, who is silent; of the one before surely */
static long long back1, back2, pingat; /* its pings were read again; the second was written */
static long long wantask;       /* at the latest */
static long long sawtype, prestook; /* presence of the target with a type was read, without
                                     * one taken */
static long long lastheld;      /* it had to wait before it could write or read, or slept */
static long long onlineat, turnedat; /* this turn of the loop began */
static size_t loglost;          /* lines that the log did not take */

static const char *
shorten(const char *s)
{
	size_t n = s ? strlen(s) : 0;

	return !s ? "(none)" : n <= 60 ? s : fmt("%.40s...(%zu bytes)", s, n);
}

static const char *
describe(const struct stanza *s)
{
	return fmt("%s %s id=%s from=%s to=%s %s", s->kind, s->type ? s->type : "-", shorten(s->id),
	           shorten(s->from), shorten(s->to), s->cond);
}

/* What the real time that a system call may take adds to a tolerance. */
static long long
slack(long long ms)
{
	return on[SLOWCALL] ? MAX(ms, 3000) : ms;
}

static struct res *
resource(const char *name)
{
	struct res **r = resbuckets + hashstring(7, name) % COUNT(resbuckets);

	for (; *r; r = &(*r)->chain)
		if (eq((*r)->name, name))
			return *r;
	*r = mem(sizeof(**r));
	(*r)->name = copy(name);
	(*r)->heard = (*r)->left = -1;
	(*r)->next = resources;
	return resources = *r;
}

/* The resource of the target that jid names, or NULL. */
static struct res *
resourceof(const char *jid)
{
	return oftarget(jid) && resof(jid) ? resource(resof(jid)) : NULL;
}

/* 1 if it may have been taken out by now as one that was silent in two probes
 * while others answered. */
static int
silentone(const struct res *r)
{
	if (probe0 >= 0 && r->heard <= probe0 && anyheard >= probe0)
		return 1;       /* in three, the first of which is over */
	return probe1 >= 0 && probe2 >= 0 && r->heard <= probe1 && anyheard >= probe1 && back2 >= 0;
}

/* 1 if the program surely, 2 if it maybe has r. */
static int
known(const struct res *r)
{
	return r->st == OUT ? 0 : r->st == MAYBE || r->left > r->joinedat || silentone(r) ? 2 : 1;
}

/* 1 if it surely has one. */
static int
anyknown(void)
{
	struct res *r;

	for (r = resources; r && known(r) != 1; r = r->next)
		;
	return r != NULL;
}

static void
setres(struct res *r, int st)
{
	nin += (st == IN) - (r->st == IN);
	nmaybe += (st == MAYBE) - (r->st == MAYBE);
	if (st != IN) {
		r->left = vt;
		nleft++;
	}
	r->st = st;
}

/* 1 if resource r is surely set aside, or surely is not. */
static int
stalled(const struct res *r)
{
	return r->pings >= 2 && !r->doubtful;
}

static int
well(const struct res *r)
{
	return known(r) == 1 && r->pings < 2;
}

/* 1 if another than r surely is not set aside, and does not drain. */
static int
better(const struct res *r, int drains)
{
	struct res *x;

	for (x = resources; x; x = x->next)
		if (x != r && well(x) && !(drains && x->drains))
			return 1;
	return 0;
}

/* ---- the model: which requests are open ---- */

#define UNWRITTEN (FOREVER / 4)
/* Requests of one requester to one address with the same id, an empty one and none
 * being the same. Which of several was answered cannot be known: they are vague. */
struct key {
	struct key *chain;
	const char *f, *p, *id;
	struct req *reqs;       /* the newest first */
	int vague;
};

/* QDUE: it may have failed by now, for which there may be no error. */
enum { QOPEN, QFAILING, QDUE, QERRED, QENDED };
struct req {
	struct req *alike, *prev, *next;
	struct key *key;
	const char *id;
	const char *user;       /* whose share it counts in */
	struct res *res;        /* NULL: a user has it */
	int st, islong;         /* islong: there is no error for it */
	int get, times;         /* it may be handed on; given so often */
	int lost;               /* who has asked has left: it may have been forgotten */
	int bounced;            /* an error has come that says that its resource is not there */
	uint64_t pay;
	long long given;        /* last */
	long long outend;       /* byte of what the program makes that it ends with */
	long long written, drained; /* given to the socket; all was */
	unsigned long nth;
};
static struct key *keys[4096];
static struct req openlist;
static long nopenlo, nopenhi;   /* open ones, surely and maybe */
static long nmistaken;          /* of several alike another may have been answered */
static unsigned long nerrs;
static long long madeend;       /* where the stanza ends that the program has just made */
static struct {                 /* a ping to itself, whether what is due has come */
	const char *id;
	long long asked, from;  /* written; due before that is meant */
} dueping;
static long long duetill, duejudged, dueback; /* of the last that was back */

#define EACHOPEN(q) (q = openlist.next; q != &openlist; q = q->next)

static struct key *
findkey(const char *f, const char *p, const char *id)
{
	struct key **k;

	id = id ? id : "";
	k = keys + hashstring(hashstring(hashstring(3, f), p), id) % COUNT(keys);
	for (; *k; k = &(*k)->chain)
		if (eq((*k)->f, f) && eq((*k)->p, p) && eq((*k)->id, id))
			return *k;
	*k = mem(sizeof(**k));
	**k = (struct key){ .f = f, .p = p, .id = id };
	return *k;
}

static void
endreq(struct req *q, int st)
{
	int was = q->st < QERRED, is = st < QERRED;

	nopenlo += (st == QOPEN) - (q->st == QOPEN);
	nopenhi += is - was;
	if (q->res) {
		q->res->open += (st == QOPEN) - (q->st == QOPEN);
		q->res->risky += is - was;
	}
	if (was && !is) {
		q->prev->next = q->next;
		q->next->prev = q->prev;
		nmistaken += q->key->vague;
	}
	q->st = st;
	if (st == QERRED)
		q->nth = ++nerrs;
}

/* It may have failed. */
static void
doubt(struct req *q)
{
	if (q->st == QOPEN)
		endreq(q, QDUE);
}

/* Put q, which is in no list, behind those that were written before. */
static void
list(struct req *q)
{
	q->prev = openlist.prev;
	while (q->prev != &openlist && q->prev->written > q->written)
		q->prev = q->prev->prev;
	q->next = q->prev->next;
	q->prev->next = q->next->prev = q;
}

static struct req *
addreq(struct key *k, const char *id, struct res *r)
{
	struct req *q = mem(sizeof(*q));

	q->key = k;
	q->id = id;
	q->res = r;
	q->user = r || !decode(resof(k->p)) ? k->f : decode(resof(k->p));
	q->given = vt;
	q->times = 1;
	q->written = UNWRITTEN;
	q->outend = madeend;
	q->drained = -1;
	q->islong = strlen(k->f) + strlen(k->p) + strlen(k->id) + 3 > REQUESTSIZE;
	q->alike = k->reqs;
	k->reqs = q;
	q->st = QENDED;
	list(q);
	endreq(q, QOPEN);
	return q;
}

/* When it has to be answered. */
static long long
deadline(const struct req *q)
{
	return q->written + answertime * 1000LL;
}

/* 1 if it is sure what becomes of q. */
static int
plain(const struct req *q)
{
	return !q->islong && !q->key->vague && !q->lost;
}

/* Requests that are not plain may have timed out unseen. */
static void
due(void)
{
	struct req *q;

	for (q = openlist.next; answertime && q != &openlist && vt + 100 >= deadline(q); q = q->next)
		if (!plain(q))
			doubt(q);
}

/* What r has asked itself may have been forgotten with it. */
static void
forgetown(const struct res *r)
{
	const char *self = under(target, r->name);
	struct req *q;

	for EACHOPEN(q)
		if (!q->res && eq(q->key->f, self)) {
			q->lost = 1;
			doubt(q);
		}
}

/* r may have been taken out: so may its requests. */
static void
unsure(struct res *r)
{
	struct req *q;

	r->left = vt;
	for EACHOPEN(q)
		if (q->res == r)
			doubt(q);
	forgetown(r);
}

/* Who has been silent in two probes may have been taken out. */
static void
doubtsilent(void)
{
	struct res *r;

	for (r = resources; r; r = r->next)
		if (r->st != OUT && silentone(r)) {
			unsure(r);
			setres(r, MAYBE);
		}
}

/* r leaves: so fail its requests. */
static void
leave(struct res *r)
{
	struct req *q;

	if (r->st == OUT)
		return;
	forgetown(r);
	setres(r, OUT);
	for EACHOPEN(q)
		if (q->res == r)
			endreq(q, QFAILING);
}

static void
leaveall(void)
{
	struct res *r;

	for (r = resources; r; r = r->next)
		leave(r);
}

static void
joins(struct res *r)
{
	size_t n = strlen(r->name);

	if (strncmp(r->name, prefix, strlen(prefix)) || n == 0 || n > 1023)
		return;
	/* while a probe is out it says nothing */
	r->doubtful |= r->pings > 0;
	r->lifehi = vt;
	if (r->st == IN && r->left <= r->joinedat)
		return;
	if (r->st == OUT) {
		r->pings = r->doubtful = r->drains = 0;
		r->wellat = vt;
		r->life = -FOREVER / 4; /* it may have joined before */
		r->pinged = -1;
		r->passed = 0;
	}
	/* if they are too many one may have left unseen */
	if (r->st != IN)
		setres(r, nin + nmaybe < MAXRESOURCES + (r->st == MAYBE) ? IN : MAYBE);
	r->joined = ++njoins;
	r->joinedat = vt;
	r->share = shares;
}

/* The request that an answer from resource r, or NULL, belongs to. *alike: how
 * many open ones of the key. */
static struct req *
findreq(struct key *k, struct res *r, int *alike)
{
	struct req *q, *best = NULL;
	int score = 0, all = 0, s;

	*alike = 0;
	for (q = k->reqs; q; q = q->alike) {
		if (q->st == QENDED)
			continue;
		all++;
		*alike += q->st != QERRED;
		s = q->st == QERRED ? 1 : q->st != QOPEN ? 2 : 3;
		s += q->res == r && s > 1 ? 3 : 0;
		if (s >= score) { /* the oldest */
			score = s;
			best = q;
		}
	}
	k->vague |= all > 1;
	return best;
}

/* 1 if an error took the place of this request's answer so lately that the
 * program has to know it still. */
static int
remembered(const struct req *q)
{
	return q->st == QERRED && (long)(nerrs - q->nth) + nopenhi - nopenlo < MAXREQUESTS;
}

/* How many of the open requests are a requester's, by its bare JID, or with NULL
 * anybody's: surely, or maybe. */
static long
shareof(const char *f, int surely)
{
	struct req *q;
	long n = 0;

	for EACHOPEN(q)
		n += (!f || samebare(q->user, f)) && (!surely || (q->st == QOPEN && !q->key->vague &&
		     (!q->res || known(q->res) == 1)));
	return n;
}

/* 1 if q may have been taken from its resource. */
static int
mayhavemoved(const struct req *q)
{
	const struct res *r = q->res;

	return q->st == QFAILING || q->bounced || known(r) != 1 || r->left >= q->given ||
	       r->pings >= 2 || (r->wellat >= q->given && r->pinged >= q->given);
}

/* ---- the model: what must come of what was read ---- */

enum { IHEADER, IHANDSHAKE, ISTANZA, IOTHER, IEND };
struct input {
	int what, step;
	struct stanza s;
	const char *why;
	long long end, arrived; /* byte of the connection; time */
	long long said;         /* byte of what the server says */
};

/* AFWD: passed on; ARES: to a resource; AERR: an error of ours; APLAIN: presence. */
enum { AFWD, ARES, AERR, APLAIN };
struct alt {
	int w;
	const char *kind, *type, *id, *from, *to, *cond;
	uint64_t pay;
};
struct expect {
	struct alt a[10];
	int n, must;
	struct key *key;        /* of the request that is handed out or answered */
	struct req *q;          /* that an answer ends */
	const char *stays;      /* whose choice has to stay, or NULL */
	int fits;               /* a get that may be handed on */
};

/* Why requests are refused, and how it is said. */
static const struct {
	const char *cond, *type;
} conditions[] = {
	{ "service-unavailable", "cancel" }, { "feature-not-implemented", "cancel" },
	{ "not-acceptable", "modify" }, { "policy-violation", "modify" },
	{ "resource-constraint", "wait" }, { "recipient-unavailable", "wait" },
	{ "remote-server-timeout", "wait" }, { "bad-request", "modify" }
};

static struct input *iq;
/* How many inputs there are, have had their effect, have arrived, were read, and were
 * taken in by the program's parser. */
static size_t niq, iqcap, ihead, iarr, inread, iread;

static int
isask(const struct stanza *s)
{
	return eq(s->kind, "iq") && (eq(s->type, "get") || eq(s->type, "set"));
}

static int
isanswer(const struct stanza *s)
{
	return eq(s->kind, "iq") && (eq(s->type, "result") || eq(s->type, "error"));
}

/* 1 if so much of a stanza may have no room: white space follows a large tag. */
static int
isfull(size_t tag, size_t rest)
{
	return tag + rest + (tag > 2000 ? tag : 0) > MAXSTANZA;
}

static void
may(struct expect *e, int w, const struct stanza *s, const char *type, const char *from,
    const char *to, const char *cond)
{
	e->a[e->n++] = (struct alt){ w, s->kind, type, w == APLAIN ? NULL : s->id, from, to, cond, s->pay };
	if (w == AERR && isfull(headbytes(s->kind, "error", s->id, from, to), 120))
		e->must = 0;    /* there is no room to say it */
}

/* An error about s from us, if one is due (RFC 6121 5.2.2). */
static void
mayerr(struct expect *e, const struct stanza *s, const char *cond)
{
	if (eq(s->type, "error") || (eq(s->kind, "message") && eq(s->type, "headline")))
		e->must = 0;
	else
		may(e, AERR, s, "error", s->to, s->from, cond);
}

/* 1 if it may be too large to go from there to there, 2 if it surely is. */
static int
toolarge(const struct stanza *s, const char *from, const char *to)
{
	size_t head = headbytes(s->kind, s->type, s->id, from, to);

	return head + s->rest > MAXSTANZA ? 2 : isfull(head + s->tag, s->rest);
}

/* It passes, or is too large: who waits for an answer, or has sent it, is told so. */
static void
passes(struct expect *e, const struct stanza *s, const char *from, const char *to)
{
	int large = toolarge(s, from, to);

	if (large && isanswer(s))
		may(e, AERR, s, "error", from, to, "policy-violation");
	else if (large)
		mayerr(e, s, "policy-violation");
	if (large < 2)
		may(e, AFWD, s, s->type, from, to, NULL);
}

/* One that goes from src, which is NULL if that is too long, with an id to a
 * resource, or to dst if that is not NULL. */
static void
handing(struct expect *e, const struct stanza *s, const char *id, const char *self,
        const char *src, const char *dst)
{
	const char *user = dst ? dst : s->from;
	struct stanza out = *s;
	int large = 0, fits = 0, busy = 0, k;
	struct res *r = src && !dst ? resources : NULL;

	out.id = id;
	if (!src)
		mayerr(e, s, "not-acceptable");
	if (isask(s) && nopenhi + nmistaken + shareof(user, 0) +
	    (nmistaken || nopenhi > nopenlo ? nmistaken + 1 : 0) >= MAXREQUESTS) {
		mayerr(e, s, "resource-constraint");
		busy = shareof(NULL, 1) + shareof(user, 1) >= MAXREQUESTS;
	}
	if (!r) {
		k = toolarge(&out, src ? src : self, dst ? dst : target);
		large = k > 0;
		fits = k < 2;
	}
	/* the length of the resource that it draws decides */
	for (; r; r = r->next)
		if (r->st != OUT) {
			k = toolarge(&out, src, under(target, r->name));
			large |= k > 0;
			fits |= k < 2;
		}
	if (large)
		mayerr(e, s, "policy-violation");
	if (src && !busy && fits)
		may(e, dst ? AFWD : ARES, &out, s->type, src, dst, NULL);
}

/* The id with which a request of resource r goes out: led by its name. */
static const char *
lead(const char *r, const char *id)
{
	char *led = mem(3 * strlen(r) + 2 + (id ? strlen(id) : 0)), *n = led;

	for (; *r; r++)
		n += sprintf(n, *r == '/' || *r == '%' ? "%%%02X" : "%c", *r);
	sprintf(n, "/%s", id ? id : "");
	return led;
}

/* The resource that leads id, if there is one of ours; *own is the rest. */
static struct res *
leader(const char *id, const char **own)
{
	const char *end = id ? strchr(id, '/') : NULL, *name;

	if (!end || !(name = decode(bareof(id))))
		return NULL;
	*own = end + 1;
	return resource(name);
}

/* An answer from src to requester f, maybe that of resource r's request. */
static void
leading(struct expect *e, const struct stanza *s, const char *src, const char *f, struct res *r)
{
	struct key *k = findkey(f, src, s->id);
	int alike, err = eq(s->type, "error");
	struct req *q = findreq(k, r, &alike);

	e->key = k;
	e->q = q;
	if (k->vague)
		e->must = 0;
	if (q) {
		/* the error of who had it before was expected */
		if (q->get && err && q->st != QERRED && (q->st == QFAILING || q->res != r)) {
			e->must = 0;
			if (!k->vague && alike == 1) {
				e->q = NULL;
				return;
			}
		} else if (q->get && err && (q->st != QOPEN || mayhavemoved(q) ||
		           eq(s->cond, "recipient-unavailable"))) {
			e->must = 0;
		}
		if (q->lost || alike > 1)
			e->must = 0;
		if (plain(q) && remembered(q)) {
			e->must = 0;    /* it has had its answer */
			return;
		}
		/* of one that is too long for an error from us the answer always passes */
		if (!q->islong && (q->st != QOPEN || (answertime && vt >= deadline(q)) ||
		    (q->res && known(q->res) != 1)))
			e->must = 0;
	}
	passes(e, s, src, f);
}

/* A request from a user, or a message for the client. */
static void
forclient(struct expect *e, const struct stanza *s, const char *self)
{
	const char *src = encode(s->from);
	int ask = isask(s), fleet = eq(s->type, "error") || eq(s->type, "headline") ||
	    (!(s->flags & KBODY) && (s->flags & KFLEET));

	if (!ask && s->elements > 200)
		e->must = 0;
	if (!ask && !anyknown() && fleet)
		e->must = 0;
	else if (!anyknown())
		mayerr(e, s, ask ? "service-unavailable" : "recipient-unavailable");
	if (nin + nmaybe == 0)
		return;
	if (ask)
		e->key = findkey(s->from, s->to, s->id);
	e->stays = relay ? bareof(s->from) : choice == STICKY ? s->from : NULL;
	e->fits = eq(s->type, "get") && strlen(s->from) + strlen(s->to) +
	          strlen(s->id ? s->id : "") + 4 + s->rest <= REQUESTSIZE;
	handing(e, s, s->id, self, src ? under(self, src) : NULL, NULL);
}

/* What must come of input i, and may. With no alternative: nothing. */
static void
predict(struct input *i, struct expect *e)
{
	const struct stanza *s = &i->s;
	struct stanza led = *s;
	const char *self, *below, *other, *src;
	struct res *r;
	int mine;

	memset(e, 0, sizeof(*e));
	if (i->what != ISTANZA || !s->from || !*s->from || !s->to || !*s->to || s->nons ||
	    !ours(s->to, &self, &below) || isours(s->from))
		return;
	mine = oftarget(s->from);
	other = decode(below);
	if (other && (oftarget(other) || isours(other)))
		other = NULL;
	/* else whom to answer may be more than fits */
	e->must = !isfull(headbytes(s->kind, s->type, s->id, s->from, s->to), 100) &&
	          s->tag <= PARSERHARD / 28;
	if (eq(s->kind, "presence")) {
		if (eq(s->type, "subscribe"))
			may(e, APLAIN, s, mine ? "subscribed" : "unsubscribed", self, s->from, NULL);
		if (mine && (eq(s->type, "subscribe") || eq(s->type, "probe")))
			may(e, APLAIN, s, NULL, self, s->from, NULL);
		else if (eq(s->type, "probe"))
			may(e, APLAIN, s, "unsubscribed", self, s->from, NULL);
	} else if (isask(s) && !mine) {
		if (below)
			mayerr(e, s, "service-unavailable");
		else
			forclient(e, s, self);
	} else if (isask(s) && !relay) {
		mayerr(e, s, "feature-not-implemented");
	} else if (isask(s)) {
		r = resourceof(s->from);
		if (!r || !other || !encode(other) || known(r) != 1)
			mayerr(e, s, below ? "service-unavailable" : "feature-not-implemented");
		if (r && other && encode(other) && known(r)) {
			e->key = findkey(s->from, under(self, encode(other)), s->id);
			led.id = lead(r->name, s->id);
			handing(e, s, led.id, self, self, other);
			/* all that it looks at has to fit */
			if (strlen(s->from) + strlen(s->to) + strlen(e->key->id) + strlen(led.id) + 30 > MAXSTANZA)
				mayerr(e, s, "policy-violation");
		}
	} else if (isanswer(s) && mine) {
		if (other && resof(s->from))
			leading(e, s, self, other, resourceof(s->from));
	} else if (isanswer(s)) {
		src = encode(s->from);
		r = relay && src && !below ? leader(s->id, &led.id) : NULL;
		if (r && known(r))
			leading(e, &led, under(self, src), under(target, r->name), NULL);
		if (r && known(r) != 1)
			e->must = 0;
	} else if (eq(s->kind, "iq")) {
		mayerr(e, s, "bad-request");
	} else if (!relay || (mine && !below)) {
		mayerr(e, s, "feature-not-implemented");
	} else if (s->flags & KCARBON) {
		;
	} else if (mine && other) {
		passes(e, s, self, other);
	} else if (!mine && !below) {
		forclient(e, s, self);
	} else {
		mayerr(e, s, "service-unavailable");
	}
	if (e->n == 0)
		e->must = 0;
}

/* ---- the model: whom the setting choice may choose ---- */

static struct stick {           /* who was served last, by whom */
	struct stick *next;
	const char *who;
	struct res *res;
	unsigned long joined, seq, seq0; /* how many had joined, and when it was free to choose */
	long long at;
} *sticks;
static struct res *charge;      /* with STANDBY */
static int hashandicaps;        /* something spoke against somebody, once */
static unsigned long chargejoined, nmoved;

/* Stalled for long, it is tried with a request; or it was not, and has been chosen. */
static void
tried(struct res *r)
{
	r->pings = 2;
	r->doubtful = 1;
	r->passed = 0;
	r->lifehi = vt;
}

/* Who is given a request must not be set aside or drain while others do not; but
 * that one may be tried. 1 if it is. get: 1 for what may be handed on, 2 for what
 * surely may, 0 for other requests, -1 for a message, -2 for what is handed on,
 * maybe after things that have not been seen yet. */
static int
checkhandicap(struct res *r, int get)
{
	struct res *x, *aside = NULL;
	int n = 0;

	if (!known(r))
		bad("choice", "a request goes to %s, which has left", r->name);
	for (x = resources; x; x = x->next)
		if (known(x) && x->pings >= 2) {
			aside = x;
			n++;
		}
	if (r->pings >= (get > 0 ? 5 : 8) && get >= 0 && choice != STANDBY && better(r, 0) &&
	    (get > 0 || (!relay && choice != STICKY))) {
		tried(r);
		return 1;
	}
	if (stalled(r) && better(r, 0))
		bad("stall", "%s is set aside and is given a request", r->name);
	if (r->drains && known(r) == 1 && better(r, 1) && !relay && get > -2)
		bad("drain", "%s drains and is given a request", r->name);
	if (n == 1 && get == 2 && aside != r && stalled(aside) && aside->pings >= 7 && !aside->drains &&
	    choice != STANDBY && aside->changes == njoins + nleft && ++aside->passed > 3)
		bad("trial", "%s has been set aside for long and is not tried", aside->name);
	return 0;
}

/* 1 if something may speak against resource r. */
static int
handicapped(const struct res *r)
{
	return r->st != OUT && (!well(r) || r->drains || r->risky + nopenhi + nmistaken >= MAXREQUESTS);
}

/* Who was served lately, or never by who has joined since, stays. */
static void
checkstick(const char *who, int get, struct res *r, int fair, int sure)
{
	struct stick *l;
	struct res *x;
	long long until;
	int stayed, free, joined = 0;

	for (l = sticks; l && !eq(l->who, who); l = l->next)
		;
	if (!l) {
		l = mem(sizeof(*l));
		*l = (struct stick){ .next = sticks, .who = who, .at = onlineat };
		sticks = l;
	}
	until = l->at + sticktime * 1000LL;
	free = vt > until + 3000;
	stayed = l->res && known(l->res) == 1 && l->res->joined == l->joined;
	if (stayed && l->res != r && sure && fair) {
		/* else it may have been out and in again, or chosen as others could not be */
		if (BUILD != 0 && r->joined <= l->seq0 && !hashandicaps)
			bad("choice", "%s was served by %s, which is still online, and now by %s",
			    who, l->res->name, r->name);
		/* some places are for two */
		else if (!healed && vt < until - 3000 && BUILD == 1 && ++nmoved > 3)
			bad("sticktime", "%s was served by %s %lld ms ago, and now by %s",
			    who, l->res->name, vt - l->at, r->name);
	}
	for (x = resources; x; x = x->next)
		joined += x->joined > l->seq && x != r;
	if (free && fair && nmaybe == 0 && l->res == r && nin > 1)
		total->stayed += (double)joined / (double)nin;
	else if (free && fair && nmaybe == 0 && stayed && l->res != r && r->joined > l->seq)
		total->moved++;
	/* before this connection somebody else may have been chosen */
	l->seq0 = free ? njoins : l->seq0;
	l->res = r;
	l->joined = r->joined;
	l->seq = njoins;
	l->at = vt;
}

/* Who has it must be whom the setting choice says; get as above. */
static void
checkchoice(const char *stays, int get, struct res *r)
{
	int fair, sure = !on[PARTPROBE] && !on[NOPROBE] && !on[LATEPROBE];
	struct res *x;

	if (checkhandicap(r, get))
		return;
	for (x = resources; x && !handicapped(x); x = x->next)
		;
	fair = !x;
	hashandicaps |= !fair;
	if (choice == STANDBY) {
		if (charge && charge != r && charge->joined == chargejoined && well(charge) &&
		    !charge->drains && sure)
			bad("standby", "a request goes to %s, and %s is in charge", r->name, charge->name);
		charge = handicapped(r) ? NULL : r;
		chargejoined = r->joined;
	} else if (stays) {
		checkstick(stays, get, r, fair, sure);
	} else if (choice == LEASTBUSY && nmaybe == 0 && nmistaken == 0 && fair && get > -2) {
		for (x = resources; x; x = x->next)
			if (known(x) == 1 && x->risky < r->open)
				bad("leastbusy", "the request goes to %s with %d open ones, %s has %d",
				    r->name, r->open, x->name, x->risky);
	} else if (choice == RANDOM && nin > 0 && fair) {
		shares += ((uint64_t)1 << 32) / (uint64_t)(nin + nmaybe);
		r->share = shares;
	}
}

/* No one that is online may be passed over for ever. */
static void
checkshares(void)
{
	struct res *r;

	for (r = choice == RANDOM ? resources : NULL; r; r = r->next)
		if (known(r) == 1 && (shares - r->share) >> 32 > 30)
			bad("choice", "%s should have had %d requests and has had none", r->name,
			    (int)((shares - r->share) >> 32));
}

/* ---- the model: what was read has its effect ---- */

/* Forget all, for a new connection. */
static void
forgetmodel(void)
{
	openlist.prev = openlist.next = &openlist;
	memset(keys, 0, sizeof(keys));
	memset(resbuckets, 0, sizeof(resbuckets));
	memset(askids, 0, sizeof(askids));
	memset(&dueping, 0, sizeof(dueping));
	resources = charge = NULL;
	sticks = NULL;
	iq = NULL;
	niq = iqcap = ihead = iarr = iread = inread = 0;
	nasks = nsince = nmoved = 0;
	nin = nmaybe = nopenlo = nopenhi = nmistaken = 0;
	shares = hashandicaps = 0;
	msub = sawpres = mayask = lastprobe = npings = doubted = unans = counts = clean1 = 0;
	probeend = OPEN;
	probe0 = probe1 = probe2 = anyheard = lastask = deniedat = back1 = back2 = sawtype = prestook = -1;
	lastheld = onlineat = dueback = duejudged = duetill = -1;
	wantask = FOREVER;
}

/* Because of what it has taken in it has to ask by then. */
static void
want(long long t)
{
	if (lastask < vt)
		wantask = MIN(wantask, t);
}

static const char *
lastid(void)
{
	return nasks ? askids[(nasks - 1) % COUNT(askids)] : NULL;
}

/* The subscription ends: it asks again as if it had never asked. */
static void
denied(void)
{
	deniedat = vt;
	leaveall();
	if (msub) {
		wantask = FOREVER;
		nsince = sawpres = 0;
	}
	probeend = DENIED;
	msub = doubted = unans = 0;
}

/* Presence of the target: what becomes of its resources. */
static void
heardof(const struct stanza *s, struct res *r)
{
	sawpres = 1;
	mayask |= s->type || back2 >= 0;
	if (eq(s->type, "subscribe") && !msub)
		want(vt + 500);
	if (!eq(s->to, domain))
		return;
	if (!s->type || eq(s->type, "unavailable")) {
		prestook = vt;
		unans = 0;
	}
	if (!s->type && r) {
		if (silentone(r))
			unsure(r);
		r->heard = anyheard = vt;
		joins(r);
		r->drains = eq(s->show, "dnd");
		if (r->drains && charge == r)
			charge = NULL;
	} else if (eq(s->type, "unavailable")) {
		if (r)
			leave(r);
		else
			leaveall();
	} else if (eq(s->type, "subscribed")) {
		msub = 1;
		want(vt);
	} else if (eq(s->type, "unsubscribed")) {
		denied();
	} else if (eq(s->type, "error")) {
		if (r || !s->id || !eq(s->id, lastid()) || probeend == UNREACHED)
			return;
		if (!eq(s->etype, "wait") && strncmp(s->cond, "remote-server", 13)) {
			denied();
		} else if (probeend == OPEN) {
			want(vt + refresh * 1000LL);
			probeend = UNREACHED;
		}
	}
}

/* A ping to itself is back: these may be given up now, and be told so later in
 * this turn. */
static void
dueisback(void)
{
	struct req *q;

	duetill = dueping.from;
	duejudged = dueping.asked;
	dueback = vt;
	dueping.id = NULL;
	for (q = openlist.next; answertime && q != &openlist && deadline(q) <= duetill + slack(100); q = q->next)
		doubt(q);
}

/* Resource r has sent s, which is no presence: it does not hang. */
static void
sends(struct res *r, const struct stanza *s)
{
	r->lifehi = vt;
	/* of who is set aside its server may say so */
	if (r->pings >= 2 && eq(s->type, "error") && eq(s->cond, "recipient-unavailable"))
		return;
	if (r->pings >= 2) {
		r->wellat = vt;
		nleft++;        /* who is to be tried may be found anew */
	}
	r->pings = r->doubtful = 0;
	r->life = vt;
}

/* Service-unavailable has come from r: that is a reason to probe, at times. */
static void
serviceless(struct res *r, const struct stanza *s, const struct expect *e)
{
	if (!r->svctime || vt - r->svctime >= refresh * 1000LL)
		r->svctime = vt;
	mayask |= r->svctime == vt || r->left >= r->svctime || r->joinedat >= r->svctime;
	if (e->key && isanswer(s) && known(r) == 1 && msub && s->elements <= 200 &&
	    r->left < r->joinedat && (!r->svcat || vt > r->svcat + refresh * 1000LL + 100)) {
		if (probeend == OPEN && (!lastprobe || back2 >= 0))
			want(vt);
		else
			doubted |= lastask < vt && probeend == OPEN;
	}
	r->svcat = vt;
}

/* 1 if it surely has been given no request since it was heard of. What is too long
 * to be kept times out unseen. */
static int
idle(const struct res *r)
{
	return r->risky == 0 && r->pings == 0 && !r->doubtful && nmistaken == 0 &&
	       (!answertime || vt < onlineat + answertime * 1000LL);
}

/* Input i has been handled, with output o by alternative a, or with none. */
static void
took(struct input *i, struct expect *e, const struct alt *a, const struct stanza *o)
{
	const struct stanza *s = &i->s;
	struct req *q = e->q;
	struct res *r;
	int ours;

	ihead++;
	if (i->what == IHANDSHAKE)
		onlineat = vt;
	if (i->what != ISTANZA || !s->from || !s->to)
		return;
	if (eq(s->from, domain) && eq(s->to, domain) && dueping.id && eq(s->id, dueping.id))
		dueisback();
	r = resourceof(s->from);
	ours = !s->nons && isours(s->to);
	if (r && ours && !eq(s->kind, "presence"))
		sends(r, s);
	if (r && eq(s->cond, "service-unavailable"))
		serviceless(r, s, e);
	if (oftarget(s->from) && ours && eq(s->kind, "presence"))
		heardof(s, r);
	if (a && eq(s->kind, "message"))
		count("messages");
	if (a && a->w == AFWD && isanswer(s))
		count("answers");
	if (a && a->w != AERR && isask(s)) {
		r = a->w == ARES ? resource(resof(o->to)) : NULL;
		if (r)
			checkchoice(e->stays, e->fits && retry ? 1 + (s->rest + 20 < REQUESTSIZE / 2) : 0, r);
		if (r && r->pings >= 5) {
			r->pings = 2;   /* a trial, whether meant as one or not */
			r->passed = 0;
		}
		if (r && (r->open == 0 || r->pings > 1)) {
			r->lifehi = vt;
			r->life = idle(r) ? vt : r->life;
		}
		q = addreq(e->key, s->id, r);
		q->get = e->fits;
		q->pay = s->pay;
		count("requests handed out");
	} else if (a && a->w == ARES) {
		checkchoice(e->stays, -1, resource(resof(o->to)));
	} else if (q && q->st != QERRED && (a || (q->res && (!q->get || !eq(s->type, "error"))))) {
		endreq(q, q->times > 1 ? QERRED : QENDED); /* others may answer, too */
	} else if (q && q->res && q->get && eq(s->cond, "recipient-unavailable")) {
		q->bounced = 1;
	}
}

static int
isalt(const struct alt *a, const struct stanza *o)
{
	if (!eq(a->kind, o->kind) || !eq(a->type, o->type) || !eq(a->from, o->from) ||
	    (a->w != ARES && !eq(a->to, o->to)))
		return 0;
	if (a->w == APLAIN)
		return 1;
	if (a->w == AERR) /* an id that is too long is left out */
		return eq(a->cond, o->cond) && o->elements == 2 && (eq(a->id, o->id) || (!o->id && a->id &&
		       strlen(a->id) + strlen(a->from) + strlen(a->to) + 60 > MAXSTANZA));
	return eq(a->id, o->id) && a->pay == o->pay && (a->w == AFWD || resourceof(o->to));
}

/* Handle the next input without an output; 0 if it needs one. */
static int
skip(void)
{
	struct input *i = iq + ihead;
	struct expect e;

	if (ihead >= iread || (i->what == IHEADER && !i->step) || i->what == IEND)
		return 0;
	predict(i, &e);
	if (e.must)
		return 0;
	took(i, &e, NULL, NULL);
	return 1;
}

/* ---- the model: what the program says by itself ---- */

/* 1 if an input is the answer of q's resource to it. */
static int
answers(const struct stanza *s, const struct req *q)
{
	const char *f = s->from && s->to && resof(s->to) ? decode(resof(s->to)) : NULL;

	return f && isanswer(s) && resourceof(s->from) == q->res &&
	       findkey(f, bareof(s->to), s->id) == q->key;
}

/* 1 if o is an error that ends a request which its resource has not answered. */
static int
isfailure(struct stanza *o)
{
	int gone = eq(o->cond, "recipient-unavailable"), late = eq(o->cond, "remote-server-timeout"), n = 0;
	struct key *k = findkey(o->to, o->from, o->id);
	struct req *q, *best = NULL, *oldest = NULL;
	size_t i;

	if (!eq(o->kind, "iq") || !eq(o->type, "error") || (!gone && !late) || o->elements != 2)
		return 0;       /* those that others made have a text */
	for (q = k->reqs; q; q = q->alike) {
		if (q->st >= QERRED || !eq(q->id, o->id))
			continue;
		n++;
		oldest = q;
		if (late ? vt + slack(100) >= deadline(q) : q->st == QFAILING || q->bounced ||
		    (q->res && (known(q->res) != 1 || q->res->left >= q->given)))
			best = q;
	}
	if (!oldest)
		return k->vague;
	k->vague |= n > 1;
	if (!best && !k->vague && late)
		bad("early", "a request of %s is timed out %lld ms after it was handed out", o->to,
		    vt - oldest->written);
	if (!best && !k->vague)
		bad("sweep", "a request of %s fails as if %s had left, which it has not: "
		    "%lld ms since its presence, %lld since the last probe but one", o->to,
		    oldest->res ? oldest->res->name : "nobody", vt - oldest->res->heard, vt - probe1);
	q = best ? best : oldest;
	if (gone && !k->vague && q->get && q->times <= (int)retry && q->st == QFAILING && anyknown())
		bad("retry", "a get of %s fails, and others could be asked", o->to);
	if (late && !k->vague && duejudged < deadline(q) - slack(100))
		bad("judged", "a request of %s is timed out, but what may have come since %lld was not "
		    "waited for", o->to, duejudged);
	for (i = ihead; late && !k->vague && i < iarr; i++)
		if (iq[i].what == ISTANZA && iq[i].arrived < deadline(q) - slack(0) && answers(&iq[i].s, q))
			bad("judged", "a request of %s is timed out while its answer, come %lld ms ago, "
			    "waits to be read", o->to, vt - iq[i].arrived);
	count(late ? "timed out" : "failed");
	endreq(q, QERRED);
	return 1;
}

/* 1 if o asks a resource whether it is alive. */
static int
isping(struct stanza *o)
{
	long long least = stall * 1000LL - slack(20);
	struct res *r = resourceof(o->to);

	if (!r || !eq(o->kind, "iq") || !eq(o->type, "get") || !eq(o->from, domain) || !(o->flags & KPING))
		return 0;
	if (!known(r))
		bad("stall", "pings %s, which has left", r->name);
	if (stall == 0)
		bad("stall", "pings %s, which it should not", r->name);
	if (vt - r->life < least || (r->pinged > lastheld && vt - r->pinged < least))
		bad("stall", "pings %s %lld ms after it was heard of, %lld after the last ping", r->name,
		    vt - r->life, vt - r->pinged);
	if (idle(r))
		bad("stall", "pings %s, which has no request", r->name);
	r->pings += r->pings < 1000;
	r->passed = 0;
	r->changes = njoins + nleft;
	if (r->pings > 1 && charge == r)
		charge = NULL;
	r->pinged = vt;
	return 1;
}

/* 1 if o is a get that is handed on to another resource, 2 if it may be. */
static int
isretry(struct stanza *o)
{
	struct req *q, *best = NULL;
	const char *self, *below, *f;
	struct res *r = resourceof(o->to), *x;
	struct key *k;
	int n = 0;

	if (!r || !eq(o->kind, "iq") || !eq(o->type, "get") || !ours(o->from, &self, &below) ||
	    !(f = decode(below)))
		return 0;
	k = findkey(f, self, o->id);
	for (q = k->reqs; q; q = q->alike)
		if (q->st < QERRED && q->get && q->pay == o->pay && q->times <= (int)retry && eq(q->id, o->id)) {
			n++;
			best = mayhavemoved(q) ? q : best;
		}
	if (!best)
		return k->vague ? 2 : 0;
	k->vague |= n > 1;
	q = best;
	if (!k->vague && q->bounced && r == q->res && r->left < q->given)
		bad("retry", "a get of %s is handed on to %s, which has bounced it", f, r->name);
	for (x = resources; choice != STANDBY && !k->vague && r->pings > 0 && !r->doubtful && x; x = x->next)
		if (x != q->res && known(x) == 1 && x->pings == 0)
			bad("retry", "a get of %s is handed on to %s, which is silent; %s is not", f, r->name, x->name);
	if (!k->vague && r == q->res && q->st != QFAILING && !q->bounced && known(r) == 1 &&
	    r->left < q->given && r->wellat < r->pinged)
		bad("retry", "a get of %s is handed on to %s, which has it", f, r->name);
	if (q->bounced && !known(r))
		bad("choice", "a request goes to %s, which has left", r->name);
	if (!q->bounced && choice != STANDBY)
		checkhandicap(r, -2);   /* and it is not remembered */
	else if (!q->bounced)
		checkchoice(NULL, -2, r);
	if (r->open == 0 || r->pings > 1)
		r->lifehi = vt;
	if (r->pings >= 5)              /* so it is tried, too */
		tried(r);
	endreq(q, QENDED);
	q->res = r;
	q->times++;
	q->given = vt;
	q->bounced = 0;
	q->outend = madeend;
	list(q);
	endreq(q, QOPEN);
	return 1;
}

/* 1 if o is a ping to itself: whether the server lives, what is due has come, or a
 * probe is over. */
static int
isselfping(struct stanza *o)
{
	if (!eq(o->kind, "iq") || !eq(o->type, "get") || !eq(o->from, domain) || !eq(o->to, domain) ||
	    !(o->flags & KPING))
		return 0;
	if (eq(o->id, lastid()) && ++npings > 1) {
		pingat = vt;
		if (back1 < 0 || vt < back1 + patience * 1000LL - slack(0))
			bad("ask", "a probe that was read %lld ms ago is taken to be over", vt - back1);
	} else if (!eq(o->id, lastid()) && !eq(o->id, "ping")) {
		dueping.id = copy(o->id);
		dueping.asked = vt;
		dueping.from = turnedat;
	}
	return 1;
}

/* When it asks again while it is not subscribed and nothing comes: askmin after the
 * first time, or after it was denied, then each time after twice as long. */
static long long
nextask(void)
{
	long long pause = nsince > 20 ? askmax : (long long)askmin << (MAX(nsince, 1) - 1);

	return MAX(lastask, deniedat) + 1000 * MIN(pause, askmax);
}

/* 1 if the proxy may be late by no fault of its own. */
static int
isslow(void)
{
	return on[ASLEEP] || on[STALL] || on[SLOWLINK] || on[SLOWCALL] || on[SMALLBUF] || on[LOSS];
}

/* 1 if o asks for the target's presence. */
static int
ispresenceask(struct stanza *o)
{
	int probe = eq(o->type, "probe"), over = back2 >= 0 && probeend == OPEN, silent = 0, clean;
	long long gap = vt - lastask;
	struct res *r;
	size_t i;

	if (!eq(o->kind, "presence") || (!probe && !eq(o->type, "subscribe")))
		return 0;
	if (!eq(o->from, domain) || !eq(o->to, target))
		bad("ask", "asks for presence from %s to %s", o->from, o->to);
	if (probe && !msub)
		bad("ask", "probes though it is not subscribed");
	for (i = 0; i < COUNT(askids); i++)
		if (o->id && eq(askids[i], o->id))
			bad("ask", "asks with id %s twice", o->id);
	for (r = resources; r; r = r->next)
		silent |= r->st != OUT && r->heard <= probe2;
	if (lastprobe && probeend == OPEN && npings == 1 && back1 >= 0 && back1 < vt && lastheld < lastask &&
	    sawtype < back1 && !on[SLOWCALL])
		bad("ask", "asks again before a probe is over");
	if (!probe && msub && lastprobe && probeend == UNREACHED && !unans && lastheld < lastask)
		bad("ask", "subscribes anew though the target cannot be reached");
	if (probe && lastprobe && !on[SLOWCALL] && !silent && iarr == iread &&
	    gap < refresh * 1000LL - 100 && !mayask && lastheld < lastask)
		bad("askrate", "probes again after %lld ms for no reason", gap);
	if (nasks > 0 && !msub && !sawpres && vt < nextask() - 20 && !isslow())
		bad("askrate", "asks again %lld ms too early", nextask() - vt);
	nsince++;
	askids[nasks++ % COUNT(askids)] = copy(o->id);
	count("asks for presence");
	if (probe)
		doubtsilent();
	/* over, and with presence in it: who was silent in two such has left */
	clean = counts && over && prestook > lastask && lastheld < lastask && !on[SLOWCALL];
	for (r = probe && clean && clean1 && !loglost ? resources : NULL; r; r = r->next)
		if (r->st == IN && r->heard < probe1 && r->joinedat < probe1 && r->toldgone < probe1 &&
		    strlen(r->name) < 90 && !strpbrk(r->name, "%\xc3"))
			bad("stays", "%s was silent in two probes, and is kept", r->name);
	clean1 = clean;
	counts = probe && (!lastprobe || (back2 >= 0 && probeend != UNREACHED));
	/* one that could not reach the target does not count */
	if (probe && (!lastprobe || probeend != UNREACHED || lastheld >= lastask)) {
		probe0 = probe1;
		probe1 = probe2;
	}
	if (probe)
		probe2 = vt;
	unans |= !probe && msub;
	mayask &= !lastprobe || back2 < 0 || sawtype >= back2;
	lastask = vt;
	lastprobe = probe;
	npings = doubted = 0;
	probeend = OPEN;
	back1 = back2 = -1;
	wantask = FOREVER;
	return 1;
}

/* The program has written stanza o: find out of what it comes. */
static void
check(struct stanza *o)
{
	struct input *i = iq + ihead;
	struct expect e = { .n = 0 };
	int a = 0, retried;
	size_t k;

	if (!o->from || !isours(o->from))
		bad("from", "writes a stanza from %s", shorten(o->from));
	if (!o->to || !*o->to)
		bad("from", "writes a stanza to nobody");
	due();
	if (ihead < iread) {
		predict(i, &e);
		a = i->step;
	}
	while (a < e.n && !isalt(e.a + a, o))
		a++;
	if (a < e.n && e.a[a].w == APLAIN && a + 1 < e.n) {
		i->step = a + 1;
	} else if (a < e.n) {
		for (k = 0; e.a[a].cond && k < COUNT(conditions); k++)
			if (eq(conditions[k].cond, o->cond) && !eq(conditions[k].type, o->etype))
				bad("effect", "error %s has type %s", o->cond, o->etype);
		if (e.a[a].cond)
			count(e.a[a].cond);
		took(i, &e, e.a + a, o);
	} else {
		skip();
		if (isselfping(o) || ispresenceask(o) || isfailure(o) || isping(o))
			return;
		retried = isretry(o);
		nmistaken += retried == 2;
		if (!retried && !e.must)
			bad("effect", "writes what nothing has asked for: %s", describe(o));
		if (!retried)
			bad("effect", "writes %s, but first has to come what %s brings: %s from %s to %s%s",
			    describe(o), describe(&i->s), e.a[0].cond ? e.a[0].cond : e.a[0].type,
			    shorten(e.a[0].from), shorten(e.a[0].to), e.n > 1 ? " or so" : "");
	}
}

/* ---- the connection ---- */

enum { NADDR = 4 };
enum { SERVES, REFUSES, SILENCE, NOROUTE };
struct written {
	int what;               /* of the stream's events, as in struct input */
	struct stanza s;
	long long end, wend;    /* its last byte, as it was made, and on the wire */
};
static struct {
	int open, fd, connecting, connected, error, addr, dead, tls, badpin;
	long long since, connectedat;
	/* towards the server: bytes taken from the program, of these gone */
	long long wtotal, wgone, wcap, wlow, wstall;
	unsigned wrate, rrate, latency;
	int wpending, wshut, rpending, rst, fin, wfail;
	/* what the program makes, and how much the TLS server has made of its records */
	char *made;
	size_t nmade, madecap, plain;
	struct written *oq;     /* how many there are, were served, are written */
	size_t noq, oqcap, ohead, owritten;
	/* from the server: what it says, before it is encrypted; bytes sent, arrived,
	 * read by the program */
	char *app;
	size_t napp, appcap;
	unsigned char *raw;
	size_t rawcap;
	long long sent, came, took, rcap, rstall;
	long long badfrom;      /* where what ends the stream begins, or -1 */
	long long costlyfrom;
	int ended, saiderror, allocfailed, quiet, scripted, shaken, hsread, blind;
	long long endedat, hsreadat, lastread, lastwrite, blockedat;
	const char *id;         /* of the stream */
	int depth;              /* of the program's parser */
} c;
static unsigned long long made; /* bytes that it has made, all in all */
static int addrs[NADDR], naddrs, nextaddr;
static int logflags = O_WRONLY;
static int roundsaid, rounds, saidrounds, mostrounds, unprovedmaybe;
static enum { UNPROVED, PROVED, MAYBEPROVED } proved; /* the last connection has lasted */
static long long lastend = -1;
static long outagelines, progress;

static long long healtime;
static void (*handlers[65])(int);
static int wakebytes, resolving, termonline, goodbye;
static long long termat, stoppedms;
static int stopped;             /* the process is, for now */
static int termarmed;           /* this signal comes just before a look-up, or as a stream opens */

static br_ssl_server_context sc;
static unsigned char scbytes[BR_SSL_BUFSIZE_BIDI];
static const unsigned char certkey[32] = {
	0xf9, 0x1a, 0x77, 0xb9, 0xd3, 0x2e, 0xd3, 0xe9, 0xee, 0x3a, 0x5f, 0xa0, 0xf6,
	0x79, 0x5d, 0x75, 0xc8, 0x6c, 0xb0, 0xf7, 0x63, 0x1d, 0xe9, 0xee, 0x75, 0x75,
	0x03, 0x68, 0xab, 0xa2, 0x86, 0xa2
};
/* A certificate of that key, that nobody uses for anything else. */
static const char certhex[] =
    "3082017030820115a003020102021442363d3fb52a66d943975f950d6be32578f81f54300a06"
    "082a8648ce3d040302300c310a300806035504030c01773020170d3236313132363132333633"
    "335a180f32313236313130323132333633335a300c310a300806035504030c01773059301306"
    "072a8648ce3d020106082a8648ce3d030107034200040cdcbdf35ad8e9899e0216f52c1c49cb"
    "d5f3b76ee44ffb0a0f2ad4ca420e0d5b513e55f65cf79783b525e3d666c30c3295b6cfecbf54"
    "97b26b2d71b38584a8b3a3533051301d0603551d0e0416041454ddc7096ec11e5611331ca87d"
    "dbb9f7edb82c75301f0603551d2304183016801454ddc7096ec11e5611331ca87ddbb9f7edb8"
    "2c75300f0603551d130101ff040530030101ff300a06082a8648ce3d04030203490030460221"
    "00ab4e141f7586e2f03be72d8c4ccc8fe6bada306f0fba3880e385fe8b1dad8596022100cc09"
    "a80195669983d55d29c29938281826cefee55986168998ff209ed031df38";
static unsigned char cert[sizeof(certhex) / 2];

static void serve(struct written *), servergreets(void), handle(int);

/* 1 if both sides still have the connection. */
static int
linked(void)
{
	return c.open && c.connected && !c.fin && !c.rst;
}

/* 1 if the server has ended it and all that it said has arrived. */
static int
finished(void)
{
	return c.fin && c.came == c.sent && !c.dead;
}

static long long
inflight(void)
{
	return c.wtotal - c.wgone;
}

static int
writable(void)
{
	return c.rst || c.wfail || c.wcap - inflight() >= c.wlow;
}

static int
readable(void)
{
	return c.came > c.took || c.rst || finished();
}

/* The server ends the connection: with FIN, or at once. */
static void
cut(const char *why, int reset)
{
	if (!linked())
		return;
	note("network: %s", why);
	c.napp = 0;
	c.fin = !reset;
	c.rst = reset;
	if (reset && rnd(2))
		c.came = c.sent = c.took;
	progress++;
}

/* The proxy has ended the connection, or its side of it. */
static void
serverlost(const char *why)
{
	cut(why, 0);
	c.scripted = 0;
}

/* So many of n bytes go at once on a link of that rate. */
static long long
portion(long long n, unsigned rate)
{
	return rate ? MIN(n, rate / 20 + 1) : n;
}

static void arrive(void *, long), drain(void *, long);

static void
arrives(long long when)
{
	if (!c.rpending)
		at(when, arrive, NULL, 0, generation);
	c.rpending = 1;
}

static void
drains(long long when)
{
	if (!c.wpending)
		at(when, drain, NULL, 0, generation);
	c.wpending = 1;
}

static void
arrive(void *p, long arg)
{
	long long n = MIN(c.sent - c.came, c.rcap - (c.came - c.took));

	c.rpending = 0;
	if (c.dead || c.rst || c.sent == c.came)
		return;
	if (c.rstall > vt) {
		arrives(c.rstall);
		return;
	}
	if (n <= 0)
		return;         /* reading goes on with it */
	n = portion(n, c.rrate);
	if (fault(SPLIT, 700))
		n = 1 + rnd(n > 4000 && often(800) ? 4000 : n > 60 && often(500) ? 60 : (unsigned)n);
	c.came += n;
	for (; iarr < niq && iq[iarr].end <= c.came; iarr++)
		iq[iarr].arrived = vt;
	if (c.came < c.sent)
		arrives(vt + (c.rrate ? n * 1000 / c.rrate : on[SPLIT] && !healed ? rnd(3) : 0));
}

static void
drain(void *p, long arg)
{
	long long n = portion(inflight(), c.wrate);

	c.wpending = 0;
	if (c.dead || c.rst)
		return;
	if (c.wstall > vt) {
		drains(c.wstall);
		return;
	}
	c.wgone += n;
	for (; c.ohead < c.noq && c.oq[c.ohead].wend <= c.wgone && !c.fin; c.ohead++)
		serve(c.oq + c.ohead);
	if (inflight() > 0)
		drains(vt + (c.wrate ? n * 1000 / c.wrate : 0));
	else if (c.wshut && !c.fin)
		serverlost("the proxy has closed its side");
}

static void
sendraw(const void *s, size_t n)
{
	if (c.fin || c.rst)
		return;
	c.raw = room(c.raw, (size_t)c.sent, n, &c.rawcap, 1);
	memcpy(c.raw + c.sent, s, n);
	c.sent += (long long)n;
	arrives(vt + c.latency);
}

/* Of what the program makes so many bytes have been written, that is b[k]. */
static void
iswritten(size_t n, const void *b, size_t k)
{
	struct req *q;

	if (n > c.nmade || memcmp(c.made + n - k, b, k))
		bad("written", "writes other bytes than it has made");
	for (; c.owritten < c.noq && c.oq[c.owritten].end <= (long long)n; c.owritten++) {
		c.oq[c.owritten].wend = c.tls ? c.wtotal : c.oq[c.owritten].end;
		goodbye |= c.oq[c.owritten].what == IEND;
	}
	for (q = openlist.prev; q != &openlist && q->written == UNWRITTEN; q = q->prev)
		if (q->outend <= (long long)n)
			q->written = vt;
}

/* Move what BearSSL's engine, the server's, has to move. */
static void
pump(void)
{
	br_ssl_engine_context *e = &sc.eng;
	unsigned char *rec, *b;
	size_t n, k;

	do {
		if ((rec = br_ssl_engine_sendrec_buf(e, &n))) {
			sendraw(rec, n);
			br_ssl_engine_sendrec_ack(e, n);
		}
		if ((b = br_ssl_engine_recvapp_buf(e, &k))) {
			c.plain += k;
			iswritten(c.plain, b, k);
			br_ssl_engine_recvapp_ack(e, k);
		}
	} while (rec || b);
}

/* Let go out what the server has said. */
static void
speak(void)
{
	size_t i, done = 0, n;
	unsigned char *b;

	if (!linked())
		c.napp = 0;
	if (!c.tls && c.napp > 0)
		sendraw(c.app, c.napp);
	while (c.tls && done < c.napp) {
		pump();
		if (!(b = br_ssl_engine_sendapp_buf(&sc.eng, &n)))
			break;
		n = MIN(n, c.napp - done);
		memcpy(b, c.app + done, n);
		br_ssl_engine_sendapp_ack(&sc.eng, n);
		br_ssl_engine_flush(&sc.eng, 0);
		done += n;
		pump();
		for (i = niq; i > 0 && iq[i - 1].end < 0; i--)
			;
		for (; i < niq && iq[i].said <= (long long)(sin_.fed - c.napp + done); i++)
			iq[i].end = c.sent;
	}
	c.napp = 0;
}

/* The server says that: it goes out with the next speak(). */
static void
says(const char *s)
{
	size_t n = strlen(s);

	if (!linked() || sin_.stopping || sin_.dead)
		return;
	c.app = room(c.app, c.napp, n, &c.appcap, 1);
	memcpy(c.app + c.napp, s, n);
	c.napp += n;
	seenfeed(&sin_, s, n);
}

/* Where what expat is at ends. */
static long long
position(const struct seen *d)
{
	return XML_GetCurrentByteIndex(d->p) + XML_GetCurrentByteCount(d->p);
}

/* What the server says has a next part, which ends with that byte of it. */
static struct input *
newinput(int what, long long said)
{
	struct input *i;

	iq = room(iq, niq, 1, &iqcap, sizeof(*iq));
	i = iq + niq++;
	*i = (struct input){ .what = what, .said = said, .end = c.tls ? -1 : said, .arrived = -1 };
	return i;
}

static void
end_in(const char *why)
{
	newinput(IEND, (long long)sin_.fed)->why = why ? copy(why) : "the server closes the stream";
	/* the program may see it before its last byte: so what was sent with it counts */
	if (c.badfrom < 0)
		c.badfrom = c.sent;
	sin_.stopping = 1;
}

static void
opened_in(const char **a, int ok)
{
	if (!ok || !attribute(a, "id")) {
		end_in("a header that is none");
		return;
	}
	newinput(IHEADER, position(&sin_));
	if (sin_.ndecl > 8)
		c.costlyfrom = c.sent;  /* more than it has to bear */
}

static int
isroutable(const struct stanza *s)
{
	return eq(s->kind, "iq") || eq(s->kind, "message") || eq(s->kind, "presence");
}

static void
got_in(struct stanza *s)
{
	struct input *i;

	if (eq(s->kind, "stream:error") || (!c.shaken && isroutable(s))) {
		end_in(s->cond);
		iq[niq - 1].said = s->end;
		iq[niq - 1].end = c.tls ? -1 : s->end;
		return;
	}
	i = newinput(IOTHER, s->end);
	i->s = *s;
	if (c.shaken && isroutable(s) && !s->nons)
		i->what = ISTANZA;
	if (!c.shaken && eq(s->kind, "handshake")) {
		i->what = IHANDSHAKE;
		c.shaken = 1;
	}
}

static struct written *
newwritten(int what)
{
	c.oq = room(c.oq, c.noq, 1, &c.oqcap, sizeof(*c.oq));
	c.oq[c.noq] = (struct written){ .what = what, .end = position(&sout), .wend = FOREVER };
	return c.oq + c.noq++;
}

/* If a signal is to come at such a moment, it does. */
static void
signals(void)
{
	if (termarmed)
		handle(termarmed);
	termarmed = 0;
}

static void
opened_out(const char **a, int ok)
{
	if (!ok || !eq(attribute(a, "to"), domain))
		bad("xml", "the stream that it opens is not one to %s", domain);
	newwritten(IHEADER);
	signals();
}

/* Why the connection may end, or NULL. */
static const char *
reason(void)
{
	long long patient = c.connectedat + patience * 1000LL - 1;

	if (termat >= 0)
		return "a signal";
	if (c.rst || c.wfail || (c.fin && c.came == c.sent))
		return "the server is gone";
	if (c.badfrom >= 0 && c.took > c.badfrom)
		return "the server has ended the stream";
	if (c.costlyfrom >= 0 && c.took > c.costlyfrom)
		return "a stanza costs too much";
	if (c.allocfailed)
		return "no memory";
	if (c.connected && (!c.hsread || c.hsreadat >= patient) && vt >= patient)
		return "no handshake in time";
	if (c.badpin || c.quiet || (c.blind && (c.took == c.sent || !c.hsread)))
		return "TLS";
	if (keepalive && vt - c.lastread >= 2000LL * keepalive - slack(2)) {
		if (c.came > c.took && vt > slept && c.rpending == 0 && c.blockedat < 0 && !on[SLOWCALL])
			bad("silence", "gives up a silent server with %lld bytes unread", c.came - c.took);
		return "silence";
	}
	return NULL;
}

static void
end_out(const char *why)
{
	const char *r = reason();

	if (why)
		bad("xml", "what it writes is wrong: %s", why);
	c.ended = 1;
	c.endedat = vt;
	newwritten(IEND);
	note("proxy: closes the stream%s", r ? fmt(" (%s)", r) : "");
	if (!r)
		bad("close", "closes the stream for no reason");
}

static void
checkhandshake(const struct stanza *s)
{
	uint64_t h = 0xcbf29ce484222325, none = 0;
	br_sha1_context sha;
	unsigned char digest[20];
	char hex[41];
	int i;

	br_sha1_init(&sha);
	br_sha1_update(&sha, c.id, strlen(c.id));
	br_sha1_update(&sha, secret, strlen(secret));
	br_sha1_out(&sha, digest);
	for (i = 0; i < 20; i++)
		sprintf(hex + 2 * i, "%02x", digest[i]);
	if (s->pay != fnv(fnv(fnv(h, &none, sizeof(none)), hex, 40), "\2", 1))
		bad("handshake", "the handshake is wrong");
	if (ihead >= iread || iq[ihead].what != IHEADER)
		bad("handshake", "a handshake comes before a header");
	iq[ihead++].step = 1;
}

static void
got_out(struct stanza *s)
{
	size_t len = headbytes(s->kind, s->type, s->id, s->from ? s->from : "", s->to ? s->to : "") + s->rest;

	if (c.ended || (c.saiderror && isroutable(s)))
		bad("ended", "writes %s after the end of its stream", s->kind);
	if (eq(s->kind, "stream:error")) {
		c.saiderror = 1;
		note("proxy: stream error %s", s->cond);
	} else if (eq(s->kind, "handshake")) {
		checkhandshake(s);
		newwritten(IHANDSHAKE);
	} else if (s->nons || !isroutable(s)) {
		bad("xml", "writes an element %s", s->kind);
	} else {
		if (len > MAXSTANZA)
			bad("large", "writes a stanza of %zu bytes: Prosody closes the stream", len);
		note("proxy: %s", describe(s));
		/* it looks again at twice what it had, which was the tag less a byte at most */
		sout.owed = s->tag <= 2050 ? 0 : s->tag - 2;
		newwritten(ISTANZA)->s = *s;
		madeend = s->end;
		check(s);
	}
}

static void
connectdone(void *p, long how)
{
	if (!c.open || !c.connecting)
		return;
	progress++;
	c.connecting = 0;
	c.connectedat = vt;
	c.error = how == SERVES ? 0 : how == REFUSES ? ECONNREFUSED : EHOSTUNREACH;
	note("network: address %d %s", c.addr, how == SERVES ? "accepts" : strerror(c.error));
	if (how != SERVES)
		return;
	c.connected = 1;
	c.lastread = vt;
	count("connections");
	seenopen(&sin_, 0, opened_in, got_in, end_in);
	seenopen(&sout, 1, opened_out, got_out, end_out);
	servergreets();
}

/* ---- what the program takes in and makes ---- */

static XML_StartElementHandler itsstart;
static XML_EndElementHandler itsend;

/* See what it has made since. */
static void
peek(void)
{
	unsigned long long before, was = made;
	size_t len, n;
	const char *s = w_made(&before, &len);

	made = before + len;
	if (!c.open || was >= made)
		return;         /* it has thrown away what was for another connection */
	n = (size_t)(made - was);
	c.made = room(c.made, c.nmade, n, &c.madecap, 1);
	memcpy(c.made + c.nmade, s + len - n, n);
	c.nmade += n;
	seenfeed(&sout, s + len - n, n);
	checkwhite(&sout);
}

/* Its parser is at the end of the next thing that the server has said. */
static void
taken(void)
{
	struct input *i = iq + iread;

	peek();
	if (iread >= niq) {
		if (!sin_.stopping)
			bad("parse", "finds more in what it reads than there is");
		return;
	}
	iread++;
	if (i->s.from && eq(i->s.kind, "presence") && i->s.type && oftarget(i->s.from))
		sawtype = vt;
	if (i->s.id && !i->s.nons && eq(i->s.id, lastid()) && eq(i->s.from, domain)) {
		*(back1 < 0 ? &back1 : &back2) = vt;
		doubtsilent();
	}
}

/* It has handled that: all that had to come of it has. */
static void
handled(void)
{
	peek();
	while (skip())
		;
	if (ihead < iread && iq[ihead].what != IEND)
		bad("effect", "has read %s, and nothing has come of it", describe(&iq[ihead].s));
}

static void XMLCALL
starting(void *data, const char *name, const char **atts)
{
	if (c.depth++ == 0)
		taken();
	itsstart(data, name, atts);
	if (c.depth == 1)
		handled();
}

static void XMLCALL
finishing(void *data, const char *name)
{
	if (--c.depth < 2)
		taken();
	itsend(data, name);
	if (c.depth < 2)
		handled();
}

void
w_elements(XML_Parser p, XML_StartElementHandler start, XML_EndElementHandler end)
{
	itsstart = start;
	itsend = end;
	XML_SetElementHandler(p, starting, finishing);
}

/* ---- system calls ---- */

static int
fails(int error)
{
	errno = error;
	return -1;
}

static void
checkfd(int fd, const char *call)
{
	if (!c.open || fd != c.fd)
		bad("fd", "%s for descriptor %d, which is not open", call, fd);
}

static void
handle(int sig)
{
	if (!running || sig > 64 || handlers[sig] == SIG_IGN)
		return;
	note("signal %d", sig);
	progress++;
	if (handlers[sig] == SIG_DFL)
		bad("signal", "signal %d is not handled and kills it", sig);
	if (sig != SIGUSR1 && termat < 0) {
		termat = vt;
		stoppedms = 0;
		termonline = c.open && c.connected && c.owritten > 0 && !c.ended && !c.wfail && !c.badpin &&
		             !c.quiet && !c.allocfailed && c.badfrom < 0 && c.costlyfrom < 0 &&
		             (!keepalive || vt < c.lastread + keepalive * 1000LL) && writable() && !c.dead;
		goodbye = 0;
	}
	handlers[sig](sig);
}

/* Each system call may take a while, and a signal may come in it. */
static void
entered(void)
{
	if (fault(SLOWCALL, 10)) {
		vt += 1 + rnd(often(50) ? 400 : 8);
		stoppedms += 400;
	}
	if (fault(SIGNALS, 2))
		handle(SIGUSR1);
}

int
w_sigaction(int sig, const struct sigaction *sa, struct sigaction *old)
{
	if (sa)
		handlers[sig] = sa->sa_handler;
	return 0;
}

void (*
w_signal(int sig, void (*h)(int)))(int)
{
	void (*had)(int) = handlers[sig];

	handlers[sig] = h;
	return had;
}

int
w_clock_gettime(clockid_t id, struct timespec *ts)
{
	if (id != CLOCK_MONOTONIC)
		bad("call", "asks for a clock that can be set");
	ts->tv_sec = (time_t)(vt / 1000 + 1000);
	ts->tv_nsec = vt % 1000 * 1000000;
	return 0;
}

int
w_fcntl(int fd, int cmd, ...)
{
	va_list ap;

	if (fd != 2)
		return 0;
	va_start(ap, cmd);
	if (cmd == F_SETFL)
		logflags = va_arg(ap, int);
	va_end(ap);
	return cmd == F_GETFL ? logflags : 0;
}

int
w_getsockopt(int fd, int level, int name, void *v, socklen_t *n)
{
	checkfd(fd, "getsockopt");
	if (name == SO_ERROR)
		memcpy(v, &c.error, sizeof(int));
	return 0;
}

int
w_socket(int family, int type, int protocol)
{
	entered();
	if (c.open)
		bad("fd", "opens a second socket");
	if (fault(ALLOC, 20)) {
		nextaddr++;
		lastend = vt;
		return fails(EMFILE);
	}
	memset(&c, 0, sizeof(c));
	generation++;
	c.open = 1;
	c.fd = FIRSTFD + (int)(generation % 3);
	c.badfrom = c.costlyfrom = c.blockedat = -1;
	c.since = vt;
	forgetmodel();
	progress++;
	return c.fd;
}

int
w_connect(int fd, const struct sockaddr *sa, socklen_t n)
{
	static const char *const hows[] = { "serves", "refuses", "is silent", "has no route" };
	int a = (int)(ntohl(((const struct sockaddr_in *)sa)->sin_addr.s_addr) & 0xff) - 1, how;

	checkfd(fd, "connect");
	if (a < 0 || a >= naddrs)
		bad("address", "connects to an address that host has not");
	if (a != nextaddr)
		bad("address", "tries address %d when it is number %d's turn", a, nextaddr);
	nextaddr = a + 1;
	c.addr = a;
	how = addrs[a];
	c.latency = on[SLOWLINK] && !healed ? rnd(400) : rnd(3);
	c.rcap = on[SMALLBUF] && !healed ? spread(20, 5000) : 1 << (12 + rnd(10));
	c.wcap = on[SMALLBUF] && !healed ? spread(20, 5000) : 1 << (12 + rnd(10));
	if (wild == 0) {
		c.rcap = c.wcap = 4 << 20;
		c.latency = 0;
	}
	c.wlow = rnd(2) ? 1 : c.wcap / 3 + 1;
	if (fault(SLOWLINK, 700)) {
		c.rrate = spread(500, 2000000);
		c.wrate = spread(500, 2000000);
	}
	note("proxy: connects to address %d, which %s", a, hows[how]);
	progress++;
	if (how == NOROUTE && rnd(2))
		return fails(ENETUNREACH);
	c.connecting = 1;
	if (how != SILENCE)
		at(vt + c.latency, connectdone, NULL, how, generation);
	return fails(EINPROGRESS);
}

int
w_shutdown(int fd, int how)
{
	checkfd(fd, "shutdown");
	if (how == SHUT_RD)
		return 0;
	peek();
	if (c.wshut || !c.connected || c.rst)
		return 0;
	c.wshut = 1;
	if (c.tls && br_ssl_engine_current_state(&sc.eng) == BR_SSL_CLOSED && !c.ended) {
		c.ended = goodbye = 1;  /* a closed engine does not tell us */
		c.endedat = vt;
	}
	note("proxy: shuts its side down");
	drains(vt + c.latency);
	progress++;
	return 0;
}

int
w_close(int fd)
{
	const char *r;
	long long lasted = vt - onlineat - backoffmax * 1000LL;

	if (fd == WAKER || fd == WAKEW)
		return 0;
	checkfd(fd, "close");
	progress++;
	peek();
	r = reason();
	if (c.connecting && vt < c.since + patience * 1000LL - MAX(1, slack(0)) && termat < 0)
		bad("close", "gives up connecting after %lld ms", vt - c.since);
	if (c.connected && !r && !c.ended)
		bad("close", "closes the connection for no reason");
	roundsaid |= c.connected;
	note("proxy: closes the connection%s%s", r ? ": " : "", r ? r : "");
	if (!c.hsread)
		proved = UNPROVED;
	else if (onlineat < 0 || slept > c.connectedat) /* while it slept it was as good as away */
		proved = MAYBEPROVED;
	else
		proved = lasted >= 1000 ? PROVED : lasted >= -1000 ? MAYBEPROVED : UNPROVED;
	lastend = vt;
	serverlost("the connection is closed");
	checkshares();
	c.open = c.connected = 0;
	generation++;
	forgetmodel();
	return 0;
}

/* Before something is read or written: 1 if it fails. */
static int
interrupted(int fd, const char *call)
{
	peek();
	entered();
	checkfd(c.connected ? fd : -1, call);
	if (!fault(AGAIN, 150))
		return 0;
	progress++;
	errno = rnd(2) ? EAGAIN : EINTR;
	return 1;
}

/* So many of n bytes are read or written at once. */
static size_t
some(long long most, size_t n)
{
	n = MIN(n, (size_t)most);
	return n > 0 && fault(SHORT, 300) ? 1 + rnd((unsigned)n) : n;
}

ssize_t
w_read(int fd, void *dst, size_t n)
{
	if (fd == WAKER) {
		if (!wakebytes)
			return fails(EAGAIN);
		n = MIN(n, (size_t)wakebytes);
		memset(dst, 0, n);
		wakebytes -= (int)n;
		progress++;
		return (ssize_t)n;
	}
	if (interrupted(fd, "read"))
		return -1;
	if (n == 0)
		bad("call", "reads no bytes at all");
	if (c.came == c.took)
		return c.rst ? fails(ECONNRESET) : finished() ? 0 : fails(EAGAIN);
	n = some(c.came - c.took, n);
	memcpy(dst, c.raw + c.took, n);
	c.took += (long long)n;
	c.lastread = vt;
	progress++;
	for (; inread < niq && iq[inread].end >= 0 && iq[inread].end <= c.took; inread++) {
		if (iq[inread].what == IHANDSHAKE) {
			c.hsread = 1;
			c.hsreadat = vt;
		}
		if (iq[inread].s.tag > PARSERHARD / 28 && c.costlyfrom < 0)
			c.costlyfrom = c.took - 1;
	}
	if (c.came < c.sent)
		arrives(vt + c.latency);
	return (ssize_t)n;
}

static void logged(const char *);
static int logstate;            /* LOGBLOCK, LOGFULL, LOGCLOSED or 0: it is read */
static size_t logused;

static ssize_t
writelog(const char *s, size_t n)
{
	int full = logstate == LOGBLOCK && logused + n > 65536;

	if (logstate == LOGCLOSED && handlers[SIGPIPE] != SIG_IGN)
		bad("signal", "SIGPIPE kills it");
	if (full && !(logflags & O_NONBLOCK))
		bad("logblock", "writes to a log that nobody reads, and blocks for ever");
	if (full || logstate == LOGCLOSED || logstate == LOGFULL) {
		loglost++;
		return fails(full ? EAGAIN : logstate == LOGCLOSED ? EPIPE : ENOSPC);
	}
	logused += logstate == LOGBLOCK ? n : 0;
	if (n < 1 || s[n - 1] != '\n')
		bad("log", "a line is none");
	if (n > 512)
		bad("loglong", "a line of %zu bytes", n);
	logged(fmt("%.*s", (int)n - 1, s));
	return (ssize_t)n;
}

ssize_t
w_write(int fd, const void *src, size_t n)
{
	unsigned char *b;
	size_t len, done;

	if (fd == WAKEW) {
		if (wakebytes == 65536)
			return fails(EAGAIN);
		wakebytes += (int)n;
		return (ssize_t)n;
	}
	if (fd == 2)
		return writelog(src, n);
	if (interrupted(fd, "write"))
		return -1;
	if (c.wshut)
		bad("call", "writes after it has shut the connection down");
	if (c.rst || c.wfail) {
		if (handlers[SIGPIPE] != SIG_IGN)
			bad("signal", "SIGPIPE kills it");
		progress += !c.wfail;
		c.wfail = 1;
		return fails(EPIPE);
	}
	if (c.wcap - inflight() <= 0)
		return fails(EAGAIN);
	n = some(c.wcap - inflight(), n);
	if (n == 0)
		return 0;
	tracehash = fnv(tracehash, src, n);
	c.wtotal += (long long)n;
	c.lastwrite = vt;
	progress++;
	if (!c.tls)
		iswritten((size_t)c.wtotal, src, n);
	for (done = 0; c.tls && done < n; done += len) {
		pump();
		if (!(b = br_ssl_engine_recvrec_buf(&sc.eng, &len)))
			break;
		len = MIN(len, n - done);
		memcpy(b, (const char *)src + done, len);
		br_ssl_engine_recvrec_ack(&sc.eng, len);
	}
	if (c.tls) {
		pump();
		if (br_ssl_engine_current_state(&sc.eng) == BR_SSL_CLOSED &&
		    br_ssl_engine_last_error(&sc.eng) != BR_ERR_OK)
			cut(fmt("the server ends TLS with error %d", br_ssl_engine_last_error(&sc.eng)), 0);
		speak();
	}
	drains(vt + c.latency);
	return (ssize_t)n;
}

/* A round through all addresses begins. The pause before it is short if nobody was
 * there, or if the connection had proved itself; longer each time if it was refused. */
static void
checkpause(void)
{
	long long gap = vt - lastend, low = 500, high = 1000;

	if (rounds > 0 && lastend > slept) {
		if (proved) {
			saidrounds = 0;
			mostrounds = proved == PROVED ? 0 : mostrounds;
		} else if (roundsaid) {
			/* the one before may count as the first */
			high = MIN(2000LL << MIN(mostrounds, 20), backoffmax * 1000LL);
			low = MIN(500LL << MIN(saidrounds, 20), high / 2);
			saidrounds++;
			mostrounds++;
		}
		if (unprovedmaybe || proved == MAYBEPROVED) {
			low = 500;
			high = backoffmax * 1000LL;
		}
		if (gap < low - 30 - slack(0) || gap > high + 60 + slack(0))
			bad("pause", "tries again after %lld ms, not %lld to %lld: %s", gap, low, high, proved ?
			    "the connection was good" : roundsaid ? "somebody was there" : "nobody was there");
	}
	unprovedmaybe = proved == MAYBEPROVED || (unprovedmaybe && !proved) || (rounds > 0 && lastend <= slept);
	rounds++;
	outagelines = roundsaid ? 0 : outagelines;
	roundsaid = 0;
	proved = UNPROVED;
}

/* All addresses are tried in turn, unless the connection has proved itself. */
static void
checkturn(void)
{
	if (!proved && nextaddr < naddrs && rounds && termat < 0)
		bad("address", "waits, or begins anew, and has not tried address %d of %d", nextaddr, naddrs);
}

int
w_getaddrinfo(const char *h, const char *p, const struct addrinfo *hints, struct addrinfo **list)
{
	struct addrinfo *a;
	struct sockaddr_in *in4;
	int i;

	progress++;
	if (termat >= 0)
		bad("term", "begins a look-up after a signal");
	if (spoilt)
		bad("config", "takes a setting that cannot work");
	if (c.open)
		bad("fd", "looks up host while it is connected");
	checkturn();
	checkpause();
	nextaddr = 0;
	resolving = 1;
	if (fault(SLOWRESOLVE, 300))
		pass(vt + 100 + rnd(40000));
	resolving = 0;
	lastend = vt;
	if (fault(NORESOLVE, 400)) {
		note("network: host is not resolved");
		nextaddr = naddrs;
		return EAI_AGAIN;
	}
	*list = NULL;
	for (i = naddrs - 1; i >= 0; i--) {
		a = mem(sizeof(*a));
		in4 = mem(sizeof(*in4));
		in4->sin_family = a->ai_family = AF_INET;
		in4->sin_addr.s_addr = htonl(0x7f000001u + (unsigned)i);
		in4->sin_port = htons(5347);
		a->ai_socktype = SOCK_STREAM;
		a->ai_addr = (struct sockaddr *)in4;
		a->ai_addrlen = sizeof(*in4);
		a->ai_next = *list;
		*list = a;
	}
	return 0;
}

void
w_freeaddrinfo(struct addrinfo *a)
{
	if (termarmed && rnd(2))
		signals();
	/* whoever uses it afterwards will not find an address in it */
	for (; a; a = a->ai_next)
		memset(a->ai_addr, 0, sizeof(struct sockaddr_in));
}

int
w_getnameinfo(const struct sockaddr *sa, socklen_t n, char *h, socklen_t hn, char *p,
              socklen_t pn, int flags)
{
	snprintf(h, hn, "127.0.0.%u", ntohl(((const struct sockaddr_in *)sa)->sin_addr.s_addr) & 0xff);
	snprintf(p, pn, "5347");
	return 0;
}

static struct block {
	struct block *next, *prev;
	size_t size, magic;
} blocks = { &blocks, &blocks, 0, 0 };
static size_t living;

void
w_free(void *p)
{
	struct block *b = p ? (struct block *)p - 1 : NULL;

	if (!b)
		return;
	if (b->magic != 0x600d600d)
		bad("memory", "frees what is not allocated");
	b->magic = 0;
	b->prev->next = b->next;
	b->next->prev = b->prev;
	living -= b->size;
	free(b);
}

void *
w_realloc(void *p, size_t n)
{
	struct block *b, *old = p ? (struct block *)p - 1 : NULL;

	if (n > 0 && c.open && fault(ALLOC, 2)) {
		c.allocfailed = 1;
		note("no memory");
		return NULL;
	}
	if (!(b = malloc(sizeof(*b) + n)))
		abort();
	if (old)
		memcpy(b + 1, p, MIN(old->size, n));
	w_free(p);
	*b = (struct block){ &blocks, blocks.prev, n, 0x600d600d };
	b->prev->next = b->next->prev = b;
	living += n;
	if (living > PARSERHARD + 65536 + PARSERHARD / 10)
		bad("memory", "holds %zu bytes", living);
	return b + 1;
}

void
w_exit(int status, int abrupt)
{
	if (!running)
		abort();
	peek();
	note("proxy: exits with %d", status);
	if (spoilt && status == 1)
		longjmp(ending, 1);
	if (termat < 0)
		bad("exit", "exits with %d, and no signal has told it to", status);
	if (abrupt && !resolving)
		bad("exit", "leaves without ado");
	if (status)
		bad("exit", "status %d after a signal", status);
	if (vt - termat > 1000 + stoppedms)
		bad("term", "takes %lld ms to leave", vt - termat);
	if (termonline && !goodbye && !c.blind && !c.rst && !c.fin && c.blockedat < 0)
		bad("term", "leaves without closing the stream");
	longjmp(ending, 1);
}

/* ---- the log ---- */

static long long budgetat, budget;

static int
starts(const char *s, const char *with)
{
	return !strncmp(s, with, strlen(with));
}

/* The log says that a resource, or all, have left: they must have. */
static void
claim(const char *s)
{
	size_t k = strlen(target);
	const char *end = strstr(s, ": "), *more;
	struct res *r;

	if (!starts(s, target) || !end || strchr(s, '%') || strlen(s) > 480)
		return;
	while ((more = strstr(end + 1, ": ")))
		end = more;
	if (s[k] == '/' && end > s + k)
		resource(fmt("%.*s", (int)(end - s - (long)k - 1), s + k + 1))->toldgone = vt;
	for (r = s[k] == ',' ? resources : NULL; r; r = r->next)
		r->toldgone = vt;
}

/* Lines that others cause are few, no line is long, all are printable. */
static void
logged(const char *s)
{
	static const char *const ourown[] = {
		"joined: ", "left: ", "failed: ", "resource: ", "counted: ", "online: ", "connect: ",
		"resolve: ", "disconnected: ", "subscribed: ", "not subscribed: ", "waiting: ",
		"stopping: ", "lost: ", "log: ", "stalled: ", "recovered: ", "draining: ",
		"back: ", "in charge: "
	};
	const char *what = s + strlen("client_proxy: ");
	long most = naddrs + 3, n;
	size_t i;

	count("log lines");
	note("log: %s", s);
	if (!starts(s, "client_proxy: ") || !*what)
		bad("log", "a line is none");
	for (i = 0; s[i]; i++)
		if (s[i] < ' ' || s[i] > '~')
			bad("log", "a line has byte %d in it", s[i]);
	if (starts(what, "left: ") && c.open)
		claim(what + 6);
	if (starts(what, "online: "))
		outagelines = 0;
	if (starts(what, "connect: ") || starts(what, "resolve: ") || starts(what, "waiting: ")) {
		for (n = 1; n <= rounds; n *= 10)
			most += 2 * naddrs + 2;
		if (++outagelines > most && !roundsaid && saidrounds == 0)
			bad("logoutage", "%ld lines in one outage", outagelines);
	}
	for (i = 0; i < COUNT(ourown); i++)
		if (starts(what, ourown[i]))
			return;
	/* a budget of 20 a second, twice that at once, and what is said of the rest */
	budget = MIN(60000, budget + (vt - budgetat) * 25) - 1000;
	budgetat = vt;
	if (budget < 0)
		bad("lograte", "more than 20 lines a second that others cause");
}

/* ---- what must hold whenever time passes ---- */

/* 1 if it has long had the time to ask whether what is due has come, and has not. */
static int
isidle(void)
{
	return !dueping.id && vt > dueback + 1000;
}

/* All that was read has had its effect on requests. */
static void
judgerequests(void)
{
	struct req *q, *next;
	struct res *x;
	int late;

	for (q = nopenhi > nopenlo ? openlist.next : &openlist; q != &openlist; q = next) {
		next = q->next;
		if (q->st != QFAILING)
			continue;
		if (plain(q))
			bad("failing", "a request of %s was in the hands of %s, which left, and has no "
			    "error yet", q->key->f, q->res->name);
		endreq(q, QERRED);
	}
	/* a ping to itself that is back says that what has not come will not */
	while ((q = openlist.next) != &openlist && answertime && q->drained >= 0) {
		late = vt > q->drained + answertime * 1000LL + MAX(1000, slack(0)) && isidle();
		if (late && plain(q))
			bad("late", "does not look for the answer to request %s of %s after %lld ms",
			    shorten(q->id), q->key->f, vt - q->written);
		if (!late && (q->drained + answertime * 1000LL > duetill || q->given >= duetill))
			break;
		if (plain(q))
			bad("late", "a request of %s has no answer after %lld ms", q->key->f, vt - q->written);
		endreq(q, QERRED);
	}
	for (q = retry ? openlist.next : &openlist; q != &openlist; q = q->next) {
		if (q->st != QOPEN || !q->get || q->key->vague)
			continue;
		if (q->bounced)
			bad("retry", "a get of %s bounces, and is neither handed on nor answered", q->key->f);
		if (q->times > (int)retry || known(q->res) != 1 || !stalled(q->res) || q->given >= q->res->pinged)
			continue;
		for (x = resources; x; x = x->next)
			if (x != q->res && known(x) == 1 && x->pings == 0 && x->wellat < q->res->pinged &&
			    x->joinedat < q->res->pinged && x->left < x->joinedat)
				bad("retry", "a get of %s stays with %s, which was set aside", q->key->f, q->res->name);
	}
}

/* All that was read has had its effect. */
static void
quiesce(void)
{
	struct req *q;
	struct res *r;
	long long t;

	for (q = openlist.prev; q != &openlist && q->drained < 0; q = q->prev)
		q->drained = vt;
	if (c.ended || c.blind)
		return;
	if (inread > iread && iq[iread].what != IEND)
		bad("effect", "has read %s and not looked at it", describe(&iq[iread].s));
	if (ihead < inread && iq[ihead].what == IEND && !c.wfail)
		bad("effect", "has read %s and goes on", iq[ihead].why);
	judgerequests();
	for (r = resources; r; r = r->next) {
		t = MAX(r->lifehi, r->pinged);
		if (stall && known(r) == 1 && r->open > 0 && nmistaken == 0 && isidle() &&
		    vt > t + stall * 1000LL + 1000 + slack(0))
			bad("stall", "%s has a request, has been silent for %lld ms and is not pinged", r->name, vt - t);
		if (known(r) == 1 && r->left < r->toldgone && r->joinedat < r->toldgone)
			bad("sweep", "says that %s has left, which it has not: %lld ms since its presence, %lld "
			    "since the last probe but one", r->name, vt - r->heard, vt - probe1);
	}
	if (onlineat >= 0 && nasks == 0)
		bad("ask", "is online and has not asked for presence");
}

/* What it owes to the target's presence: it could read and write all, and has done so. */
static void
judgeasks(void)
{
	long long due = wantask, held = MAX(lastheld, slept);

	if (msub && lastprobe && probeend == OPEN && npings == 1 && back1 >= 0)
		due = MAX(back1, held) + patience * 1000LL;
	else if (msub && lastprobe && probeend == OPEN && back2 >= 0 &&
	         (doubted || (prestook < lastask && !unans)))
		due = back2;
	else if (!msub) /* after a probe the time begins anew */
		due = MIN(due, sawpres ? MAX(lastask, deniedat) + 1000LL * MAX(askmax, refresh) : nextask());
	else if (probeend == OPEN)
		due = MIN(due, (npings > 1 ? pingat : lastask) + refresh * 1000LL);
	due = MAX(due, held);
	if (due < FOREVER && vt > due + 3000 && !on[SMALLBUF] && !on[SLOWLINK])
		bad("asklate", "has to ask for presence, or ping, since %lld ms, and does not", vt - due);
}

/* It waits without a connection, or for one. */
static void
judgepause(short events, long long end)
{
	if (c.open && (!(events & POLLOUT) || end == FOREVER))
		bad("hang", "waits for a connection in vain");
	if (c.open && vt > c.since + patience * 1000LL + 100 + slack(0) && vt > slept)
		bad("patience", "waits for a connection for %lld ms", vt - c.since);
	if (c.open)
		return;
	if (end == FOREVER)
		bad("hang", "waits for ever without a connection");
	if (living)
		bad("memory", "keeps %zu bytes without a connection", living);
	checkturn();
}

/* It waits for these events on the connection, until then. */
static void
judge(short events, long long end)
{
	int blocked = !writable();
	long long life, most;

	if (!c.open || c.connecting || c.error) {
		judgepause(events, end);
		return;
	}
	c.blockedat = blocked ? c.blockedat < 0 ? vt : c.blockedat : -1;
	if (readable() && !(events & POLLIN) && !(blocked && (events & POLLOUT)))
		bad("hang", "%lld bytes wait to be read, and it waits for %s", c.came - c.took,
		    events & POLLOUT ? "the socket, which is writable" : "nothing");
	if (!(events & (POLLIN | POLLOUT)))
		bad("hang", "waits for nothing on the connection");
	if (!(events & POLLOUT))
		quiesce();
	if (c.blind && c.took == c.sent && vt > c.lastread + 1000 && writable())
		bad("tlsclose", "keeps a connection whose TLS has ended %lld ms ago", vt - c.lastread);
	if ((slept >= 0 && vt <= slept + 1000) || c.blind)
		return;
	if (c.ended && vt > c.endedat + 1000)
		bad("closing", "keeps a connection %lld ms after the end", vt - c.endedat);
	if (!c.ended && !c.hsread && vt > MAX(c.connectedat, slept) + patience * 1000LL + 1000)
		bad("patience", "waits for the handshake for %lld ms", vt - c.connectedat);
	if (c.ended || onlineat < 0)
		return;
	/* while it does not read for want of room, what it writes is the sign of life */
	life = MAX(c.lastread, MIN(paused, c.lastwrite));
	/* the ping of who was asleep when it was due is late */
	life = MAX(life, slept - keepalive * 1000LL);
	most = keepalive * 2000LL + 1000;
	if (keepalive && vt > life + most && ((events & POLLIN && c.came == c.took) || vt > c.lastwrite + most))
		bad("keepalive", "keeps a connection that has been silent for %lld ms", vt - c.lastread);
}

/* Set what has happened to the descriptors; returns how many are ready. */
static int
lookat(struct pollfd *p, nfds_t n)
{
	int ready = 0;
	nfds_t i;

	for (i = 0; i < n; i++) {
		p[i].revents = 0;
		if (p[i].fd < 0)
			continue;
		if (p[i].fd == WAKER)
			p[i].revents = wakebytes ? POLLIN : 0;
		else if (!c.open || p[i].fd != c.fd)
			bad("fd", "polls descriptor %d, which is not open", p[i].fd);
		else if (c.error)
			p[i].revents = POLLERR | POLLHUP | POLLIN | POLLOUT;
		else if (!c.connecting)
			p[i].revents = (readable() ? POLLIN : 0) | (writable() ? POLLOUT : 0) |
			               (c.rst ? POLLERR | POLLHUP : 0) |
			               (finished() && c.wshut ? POLLHUP : 0);
		p[i].revents &= p[i].events | POLLERR | POLLHUP;
		ready += p[i].revents != 0;
	}
	return ready;
}

static long lastprogress, same, wakes;
static long long lastvt, window;

/* It does something, or it sleeps. A record of TLS that was read is taken in pieces. */
static void
checkbusy(void)
{
	int pieces = c.tls ? 20000 / INSIZE : 0;

	same = progress == lastprogress && vt == lastvt ? same + 1 : 0;
	if (same > 12 + pieces)
		bad("busy", "turns and turns without doing anything");
	if (progress != lastprogress || vt > window + 1000) {
		wakes = 0;
		window = vt;
	}
	if (++wakes > 40 + pieces)
		bad("busy", "wakes %ld times in a second for nothing", wakes);
	lastprogress = progress;
	lastvt = vt;
}

int
w_poll(struct pollfd *p, nfds_t n, int timeout)
{
	long long end = timeout < 0 ? FOREVER : vt + timeout, ms;
	short events = 0, waker = 0;
	int ready, judged = 0, held;
	long was;
	nfds_t i;

	for (i = 0; i < n; i++) {
		waker |= p[i].fd == WAKER ? p[i].events : 0;
		events |= c.open && p[i].fd == c.fd ? p[i].events : 0;
	}
	if (!(waker & POLLIN))
		bad("hang", "waits deaf to signals");
	/* others share them */
	if (logflags != O_WRONLY)
		bad("call", "leaves the log's flags changed");
	held = c.open && events != POLLIN;
	peek();
	entered();
	if (fault(ASLEEP, 3)) {
		ms = 1000 * spread(1, 900);
		ms = MIN(ms, healtime - vt);
		note("the process is stopped for %lld ms", ms);
		stopped = 1;
		pass(vt + ms);
		stopped = 0;
		slept = paused = vt;
		stoppedms += ms;
		end = MAX(end, vt);
	}
	if (held || vt == slept)
		lastheld = vt;
	checkbusy();
	while (!(ready = lookat(p, n)) && vt < end) {
		if (!judged)
			judge(events, end);
		judged = 1;
		if (nextevent() > end) {
			vt = end;
			continue;
		}
		if (nextevent() == FOREVER)
			bad("hang", "waits for ever");
		was = progress;
		happen();
		if (wakebytes && was != progress && rnd(2))
			return fails(EINTR);
	}
	if (judged && !held && c.open && !c.ended && !c.blind && onlineat >= 0 && nasks > 0 && !on[SLOWCALL])
		judgeasks();
	if (held)
		lastheld = vt;
	if (!(p[1].events & POLLIN) || on[SLOWCALL])
		paused = vt;
	turnedat = vt;
	return ready;
}

/* ---- the server, its workers and requesters ---- */

enum { NOSUB, PENDING, SUBSCRIBED };
enum { FINE, ERRHEADER, NOHEADER, BADHEADER, ERRSHAKE, NOSHAKE, KICKS, TRICKLES, CLOSES };
struct reply {
	struct reply *next;
	struct worker *w;       /* who gives it; NULL: a user */
	const char *type, *id, *from, *to, *body;
};
static struct worker {
	const char *name;
	int up, alive, mute, hung, punctual, wrong, twice, errs;
	unsigned delay, presbytes;
	struct reply *queue;    /* what has come while it was not alive */
} *workers;
static unsigned nworkers, npeople;
static const char **people;
static int subscription, prosody, remote, linkdown, mood, style, quote, listsall, down;
static long long moodend, accepttime, finaltime;
static int nfinal, finals;
static unsigned long token, owns; /* owns: requests of the workers' own */
static const char finaljid[] = "final@x.test/y";

/* An attribute, escaped as liberally as Prosody does, or not. */
static const char *
attr(const char *name, const char *value)
{
	char *s, *p;

	if (!value)
		return "";
	s = mem(strlen(name) + 6 * strlen(value) + 5);
	for (p = s + sprintf(s, " %s=%c", name, quote); *value; value++)
		if (*value == '&')
			p = stpcpy(p, "&amp;");
		else if (*value == '<')
			p = stpcpy(p, "&lt;");
		else if (*value == '>' && style & 1)
			p = stpcpy(p, "&gt;");
		else if (*value == '\'' && (quote == '\'' || style & 1))
			p = stpcpy(p, "&apos;");
		else if (*value == '"' && (quote == '"' || style & 1))
			p = stpcpy(p, "&quot;");
		else
			*p++ = *value;
	*p = (char)quote;
	return s;
}

/* The server sends a stanza, if there is a stream. */
static void
tell(const char *kind, const char *type, const char *id, const char *from, const char *to,
     const char *body)
{
	const char *xmlns = NULL, *lang, *s;

	if (!c.open || !c.scripted || sin_.stopping)
		return;
	if (fault(ODDNS, 300))
		xmlns = rnd(3) ? rnd(2) ? "jabber:client" : "jabber:server" : rnd(4) ? COMPONENTNS : "urn:x";
	lang = fault(ODDNS, 50) ? "de" : NULL;
	s = attr("type", type);
	s = fmt("<%s%s%s%s%s%s%s%s", kind, attr("xmlns", xmlns), style & 2 ? s : "", attr("from", from),
	        attr("to", to), style & 2 ? "" : s, attr("id", id), attr("xml:lang", lang));
	s = body && *body ? fmt("%s>%s</%s>", s, body, kind) : fmt("%s/>", s);
	note("server: %s %s id=%s from=%s to=%s (%zu bytes)", kind, type ? type : "-", shorten(id),
	     shorten(from), shorten(to), strlen(s));
	says(s);
	if (fault(WHITE, 100))
		says(rnd(2) ? " " : "\n");
}

static void
telltype(const char *type, const char *from)
{
	tell("presence", type, NULL, from, domain, NULL);
}

/* One of a list of strings. */
#define ANY(list) ((list)[rnd(COUNT(list))])

static const char *
errorbody(const char *type, const char *cond)
{
	return fmt("<error type='%s'><%s xmlns='" STANZASNS "'/><text xmlns='" STANZASNS "'>%lu</text></error>",
	           type, cond, ++token);
}

static const char *
filler(size_t n)
{
	static const char *const bits[] = {
		"x", "]]&gt;", "&lt;", "&amp;", "'\"", "&#13;", "ü", "> ", "&gt;"
	};
	char *s = mem(n + 16), *p = s;
	int plain = rnd(3) == 0;

	while ((size_t)(p - s) + 6 < n)
		p = stpcpy(p, plain || often(900) ? "x" : ANY(bits));
	memset(p, 'y', p < s + n ? n - (size_t)(p - s) : 0);
	return s;
}

/* Some payload; over is how many bytes it shall be longer than the limit, if
 * head is not 0, which is what the stanza's start will take. */
static const char *
content(size_t head, int over)
{
	static const char *const forms[] = {
		"<q xmlns='urn:w' t='%lu' a='1\"2' b=\"it's\" c='&lt;&amp;&#10;&#9;&#13;'/>",
		"<q xmlns='urn:w' t='%lu'><![CDATA[<&]]]]><![CDATA[>]]>]]&gt;&gt;&#13;</q>",
		"<p:q xmlns:p='urn:p' p:a='%lu'><p:b/><c xmlns=''>&#x1F600;</c></p:q>",
		"<q xmlns='urn:w' t='%lu'><a><b><c><d><e f='g'>h<i/>j</e></d></c></b></a> </q>"
	};
	unsigned long t = ++token;
	const char *q = fmt("<q xmlns='urn:w' t='%lu'>", t), *prefix_;
	unsigned form;
	char *s, *p;
	size_t i, n;

	if (head) {
		n = strlen(q) + strlen("</q>") + 1 + strlen("</iq>") + head;
		for (i = 0; i < sin_.ndecl; i++)
			n += attrbytes(sin_.decl[i].name, sin_.decl[i].value);
		if (n < MAXSTANZA)
			return fmt("%s%s</q>", q, repeat('z', MAXSTANZA + (size_t)over - n));
	}
	if (healed || (wild == 0 && !fuzzbytes))
		return fmt("%ssome text</q>", q);
	form = rnd(11);
	if (form < COUNT(forms))
		return fmt(forms[form], t);
	switch (form) {
	case 4:
		if (sin_.ndecl == 0 || !(prefix_ = strchr(sin_.decl[0].name, ':')))
			break;
		return fmt("<%s:q t='%lu' %s:u='v'/>", prefix_ + 1, t, prefix_ + 1);
	case 5:
		return fmt("%s%s</q>", q, filler(often(100) ? 3000 : 100));
	case 6:
		return fmt("%s%s</q>", q, filler(fault(HUGE, 300) ? rnd(3) ? MAXSTANZA / 2 + rnd(MAXSTANZA) :
		           rnd(MAXSTANZA / 8) : MAXSTANZA / 20));
	case 7:
		s = mem(16384);
		p = stpcpy(s, q);
		for (n = rnd(often(100) ? 300 : 10); n > 0; n--) {
			p += sprintf(p, "<e%u ", rnd(100000));
			p += sprintf(p, "a%u=", rnd(100000));
			p += sprintf(p, "'%u'/>", rnd(9));
		}
		strcpy(p, "</q>");
		return s;
	case 8:
		return fmt("<q xmlns='urn:w' a='%lu' b='%s'/>", t, repeat('b', fault(HUGE, 200) ? 68 : 1));
	}
	return fmt("<q xmlns='urn:w' t='%lu'/>", t);
}

static const char *
fullname(const struct worker *w)
{
	return under(target, w->name);
}

static int
cansee(void)
{
	return subscription == SUBSCRIBED && !linkdown && c.scripted;
}

/* An event: the server shows the presence of worker p. */
static void
shows(void *p, long arg)
{
	struct worker *w = p;

	if (cansee() && w->up)
		tell("presence", NULL, NULL, fullname(w), domain, w->presbytes ?
		     fmt("<status>%s</status>", filler(w->presbytes)) : rnd(3) ? NULL :
		     rnd(2) ? "<show>dnd</show>" : "<priority>-1</priority>");
}

static void
answerprobe(void)
{
	struct worker *w;

	if (fault(NOPROBE, 400))
		return;
	for (w = workers; w < workers + nworkers; w++) {
		if (!w->up || fault(PARTPROBE, 200))
			continue;
		if (fault(LATEPROBE, 300))
			at(vt + 1 + rnd(2000 * patience), shows, w, 0, generation);
		else if (remote)
			at(vt + 50 + rnd(100), shows, w, 0, generation);
		else
			shows(w, 0);
	}
}

/* An event: a worker accepts the subscription. */
static void
accepted(void *p, long arg)
{
	unsigned i;
	int any = 0;

	for (i = 0; i < nworkers; i++)
		any |= workers[i].up && workers[i].alive;
	if (subscription != PENDING || linkdown)
		return;
	if (!any && !healed) {
		at(vt + 5000, accepted, NULL, 0, 0);
	} else if (fault(DENY, 300)) {
		subscription = NOSUB;
		telltype("unsubscribed", target);
	} else {
		subscription = SUBSCRIBED;
		telltype("subscribed", target);
		for (i = 0; listsall && i < nworkers; i++)
			shows(workers + i, 0);
	}
}

static void
comes(struct worker *w)
{
	if (w->up)
		return;
	w->up = w->alive = 1;
	w->queue = NULL;
	note("worker %s comes", shorten(w->name));
	shows(w, 0);
	if (subscription == PENDING)
		at(vt + accepttime, accepted, NULL, 0, 0);
}

/* An event: worker p comes, as soon as its server is there. */
static void
comeslater(void *p, long arg)
{
	if (!down)
		comes(p);
	else
		at(vt + 1000, comeslater, p, 0, 0);
}

/* The server has done away with a session. */
static void
goes(struct worker *w, int silently)
{
	const char *id, *from;
	struct reply *q;

	if (!w->up)
		return;
	w->up = w->alive = 0;
	note("worker %s goes%s", shorten(w->name), silently ? " without a word" : "");
	for (q = w->queue; q && cansee(); q = q->next)
		tell("iq", "error", q->id, fullname(w), q->to, errorbody("cancel", "recipient-unavailable"));
	w->queue = NULL;
	if (fault(PRERROR, 300)) {
		id = rnd(2) ? "other" : NULL;
		from = rnd(2) ? target : fullname(w);
		tell("presence", "error", id, from, domain,
		     errorbody("cancel", rnd(2) ? "recipient-unavailable" : "service-unavailable"));
	}
	if (!silently && cansee())
		telltype("unavailable", fullname(w));
}

static void
goneunseen(void *p, long arg)
{
	if (!healed)
		goes(p, 0);
}

/* An event: a reply is given. */
static void
answer(void *p, long arg)
{
	struct reply *r = p;
	struct worker *w = r->w;
	const char *self = "", *below = NULL, *f;
	size_t head;

	if (w && (!w->up || !w->alive || w->hung || linkdown))
		return;
	if (!w) {
		r->body = rnd(3) ? content(0, 0) : errorbody("cancel", "item-not-found");
	} else if (!r->body) {
		ours(r->to, &self, &below);
		f = decode(below);
		head = f ? headbytes("iq", r->type, r->id, self, f) : 0;
		head = fault(OVERFLOW, 40) ? head : 0;
		r->body = content(head, (int)rnd(3) - 1);
	}
	tell("iq", r->type, r->id, w ? fullname(w) : r->from, r->to, r->body);
}

static void
later(long long when, struct reply r)
{
	at(when, answer, memcpy(mem(sizeof(r)), &r, sizeof(r)), 0, 0);
}

/* Where a worker sends an answer that is not the requester. */
static const char *
wrongaddress(void)
{
	static const char *const odd[] = {
		"x", "%41%42", "%", "%4", "%zz", "%00", "%C0%80", "%ED%A0%80", "%EF%BF%BE",
		"%EF%BF%BF", "%7F", "%0A", "a@b.test/%7f", "\xc3\xbc@b.test", "%C3", "%F4%90%80%80",
		"nobody@nowhere.test/x", "%EF%BF%BD", "%F0%9F%98%80", "%E0%80%80", "%C3%BC@b.test"
	};
	const char *below = rnd(5) ? ANY(odd) : NULL;

	if (!rnd(4))
		below = rnd(2) ? domain : encode(fullname(workers + rnd(nworkers)));
	return below ? under(rnd(2) ? domain : fmt("n@%s", domain), below) : domain;
}

/* A request for a worker has come from the proxy. */
static void
work(struct worker *w, const struct stanza *s)
{
	struct reply r = { w->queue, w, "result", s->id, NULL, s->from, NULL };

	if (!w->alive) {
		w->queue = memcpy(mem(sizeof(r)), &r, sizeof(r));
		return;
	}
	if (w->hung)
		return;
	if (s->flags & KPING && eq(s->from, domain)) {
		if (w->mute)
			return;
		r.type = rnd(4) ? "result" : "error";
		r.body = eq(r.type, "result") ? "" : errorbody("cancel", "feature-not-implemented");
		later(vt + rnd(500), r);
		return;
	}
	if (w->errs && !healed && often((unsigned)w->errs)) {
		r.type = "error";
		r.body = errorbody("cancel", rnd(2) ? "service-unavailable" : "item-not-found");
	}
	if (w->wrong && !healed && often(100)) {
		r.to = wrongaddress();
		count(behaviours[WRONG].name);
	}
	if (w->punctual && answertime && !healed)
		later(vt + answertime * 1000LL - rnd(r.body ? 20 : 500), r);
	else
		later(vt + (w->delay ? rnd(w->delay) : 0), r);
	r.body = NULL;
	if (w->twice && !healed && often(200)) {
		if (rnd(2))
			r.w = workers + rnd(nworkers);
		later(vt + 1 + rnd(100000), r);
		r.w = w;
	}
	if (relay && !eq(s->to, target) && often(200) && !healed) {
		r.type = rnd(2) ? "get" : "set";
		r.id = fmt("r%lu", ++owns);
		if (!rnd(8))
			r.to = rnd(2) ? domain : under(domain, domain);
		later(vt + rnd(1000), r);
	}
}

/* Presence of the proxy for the target's account. */
static void
asked(const struct stanza *s)
{
	if (linkdown) {
		if (remote != 2)
			tell("presence", "error", s->id, target, domain, errorbody(remote == 1 ? "cancel" : "wait",
			     remote == 1 ? "remote-server-not-found" : "remote-server-timeout"));
	} else if (eq(s->type, "subscribe")) {
		if (fault(DENY, 200)) {
			tell("presence", "error", s->id, target, domain, errorbody("cancel", "item-not-found"));
		} else if (subscription == SUBSCRIBED) {
			telltype("subscribed", target);
			if (listsall)
				answerprobe();
		} else {
			subscription = PENDING;
			at(vt + (healed ? 0 : accepttime), accepted, NULL, 0, 0);
		}
	} else if (eq(s->type, "probe")) {
		if (subscription == SUBSCRIBED) {
			answerprobe();
		} else if (prosody) {
			subscription = NOSUB;
			telltype("unsubscribed", target);
		}
	}
}

/* A stream error, which ends it or not. */
static void
streamerror(const char *cond, const char *more)
{
	says(fmt("<stream:error><%s xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>%s", cond, more));
}

/* The proxy has opened the stream. */
static void
serveheader(void)
{
	static const char *const bads[] = {
		"<stream:stream xmlns='" COMPONENTNS "' xmlns:stream='" STREAMSNS "'>",
		"<stream:stream xmlns='jabber:client' xmlns:stream='" STREAMSNS "' id='1'>",
		"HTTP/1.1 400 >>>>", "<html><body>"
	};
	const char *s = "", *cond;
	size_t i;

	if (mood == NOHEADER)
		return;
	if (mood == CLOSES) {
		cut("the server cuts the connection before a word", (int)rnd(2));
		return;
	}
	c.id = rnd(2) ? "id" : "3&'\"<x";
	if (!rnd(3))
		s = "<?xml version='1.0'?>";
	if (mood == BADHEADER) {
		says(fmt("%s%s", s, bads[rnd(2) ? 3 : rnd(2) ? 2 : rnd(2)]));
		return;
	}
	if (mood == TRICKLES)
		c.rrate = 20;
	s = fmt("%s<stream:stream%*s%s%s%s%s", s, mood == TRICKLES ? 100 : 0, "",
	        attr("xmlns:stream", STREAMSNS), attr("xmlns", COMPONENTNS), attr("from", domain),
	        attr("id", c.id));
	for (i = on[DECLS] ? rnd(healed || !wild ? 8 : 10) : 0; i > 0; i--)
		s = fmt("%s%s", s, attr(fmt("xmlns:%c", "\0abcdefghi"[i]), i == 1 ? "urn:'x'&\"" : fmt("urn:%zu", i)));
	says(fmt("%s>", s));
	if (mood == ERRHEADER) {
		cond = rnd(2) ? "host-unknown" : "undefined-condition";
		streamerror(cond, "<text xmlns='urn:ietf:params:xml:ns:xmpp-streams' a='>'>no \xc3\xbc</text>"
		            "</stream:error></stream:stream>");
		if (rnd(2))
			cut("the server ends the connection", 0);
	}
	if (on[WHITE])
		says("<stream:features><x xmlns='y'/></stream:features>");
}

/* The proxy has sent its handshake. */
static void
servehandshake(void)
{
	if (mood == NOSHAKE)
		return;
	if (mood == ERRSHAKE && !rnd(4)) {
		says("<iq type='get'/>");
		return;
	}
	if (mood == ERRSHAKE) {
		streamerror("not-authorized", "</stream:error></stream:stream>");
		cut("the server ends the connection", 0);
		return;
	}
	if (mood == ERRHEADER || mood == BADHEADER)
		return;
	says(rnd(2) ? "<handshake/>" : "<handshake></handshake>");
	c.scripted = 1;
	note("server: handshake");
	if (mood == KICKS) {
		streamerror("conflict", "</stream:error></stream:stream>");
		serverlost("the server throws it out");
	}
}

/* A stanza of the proxy's for the target. */
static void
servetarget(const struct stanza *s)
{
	struct worker *w = workers;
	int up;

	while (w < workers + nworkers && !eq(w->name, resof(s->to)))
		w++;
	up = w < workers + nworkers && w->up;
	if (eq(s->kind, "presence")) {
		asked(s);
	} else if (linkdown) {
		if (eq(s->type, "get") && rnd(2))
			tell("iq", "error", s->id, s->to, s->from, errorbody("wait", "remote-server-timeout"));
	} else if (isask(s) && !up) {
		tell("iq", "error", s->id, s->to, s->from, errorbody("cancel", "service-unavailable"));
	} else if (isask(s)) {
		work(w, s);
	} else if (up && w->alive && !w->hung && relay && eq(s->kind, "message") &&
	           !eq(s->type, "error") && rnd(2)) {
		tell("message", s->type, s->id, s->to, s->from, fault(HUGE, 300) ?
		     content(0, 0) : fmt("<body>%lu</body>", ++token));
	}
}

/* The server handles what the proxy has written. */
static void
serve(struct written *o)
{
	const struct stanza *s = &o->s;
	struct reply r = { NULL, NULL, NULL, s->id, s->to, s->from, NULL };

	if (!c.open || c.fin || c.rst)
		return;
	if (o->what == IEND) {
		if (!sin_.stopping)
			says("</stream:stream>");
		if (!fault(TRICKLE, 500))
			cut("the server ends the connection too", 0);
	} else if (o->what == IHEADER) {
		serveheader();
	} else if (o->what == IHANDSHAKE) {
		servehandshake();
	} else if (!c.scripted) {
		;
	} else if (oftarget(s->to)) {
		servetarget(s);
	} else if (isours(s->to)) {
		tell(s->kind, s->type, s->id, s->from, s->to, s->flags & KPING ? "<ping xmlns='urn:xmpp:ping'/>" : NULL);
	} else if (eq(s->to, finaljid)) {
		finals += eq(s->type, "result") && s->id && !strncmp(s->id, "final", 5);
	} else if (relay && isask(s) && rnd(4)) {
		r.type = rnd(3) ? "result" : "error";
		later(vt + (fault(SLOW, 200) ? rnd(100000) : 0), r);
		if (fault(TWICE, 300)) {
			r.from = rnd(2) ? people[rnd(npeople)] : r.from;
			later(vt + rnd(50000), r);
		}
	} else if (relay && eq(s->kind, "message") && !eq(s->type, "error") && !rnd(6)) {
		tell("message", "error", s->id, s->to, s->from, errorbody("cancel", "gone"));
	}
}

/* A connection stands; what comes first is up to the client, with TLS. */
static void
servergreets(void)
{
	static br_x509_certificate chain[2];
	static br_ec_private_key key;

	if (!*tlspin)
		return;
	chain[0] = chain[1] = (br_x509_certificate){ cert, sizeof(cert) };
	key = (br_ec_private_key){ BR_EC_secp256r1, (unsigned char *)certkey, sizeof(certkey) };
	br_ssl_server_init_full_ec(&sc, chain, 1 + rnd(2), BR_KEYTYPE_EC, &key);
	br_ssl_engine_set_buffer(&sc.eng, scbytes, sizeof(scbytes), 1);
	br_ssl_server_reset(&sc);
	c.tls = 1;
	c.badpin = on[TLSBAD];
	c.quiet = mood == BADHEADER;
	if (c.quiet && rnd(2))
		sendraw("HTTP/1.1 400 Bad Request\r\n\r\n", 28);
	else if (c.quiet) /* an alert */
		sendraw(rnd(2) ? "\25\3\3\0\2\2\50" : "\25\3\3\0\2\2\106", 7);
}

static void
cutlater(void *p, long arg)
{
	cut("the server ends the connection", 0);
}

/* How the server ends the stream. */
enum { POLITELY, ABRUPTLY, TORN, BYRESET, INONEPIECE };

static void
serverends(const char *cond, int how)
{
	if (!linked())
		return;
	if (c.scripted && cond)
		streamerror(cond, "</stream:error>");
	if (c.scripted && how == POLITELY)
		says("</stream:stream>");
	if (how == INONEPIECE)          /* the last words and close_notify */
		says(" ");
	speak();
	if (c.tls && (how == INONEPIECE || (how == POLITELY && rnd(2)))) {
		br_ssl_engine_close(&sc.eng);
		pump();
		c.blind = 1;            /* a closed engine gives us no more to read */
	}
	if (how == TORN && !c.blind && rnd(2) && c.sent > c.came) /* in the middle of a record */
		c.sent = c.came + rnd((unsigned)(c.sent - c.came));
	c.scripted = 0;
	if (c.blind && rnd(2)) /* it waits for our close_notify, with the last words in one piece */
		at(vt + 30000, cutlater, NULL, 0, generation);
	else
		cut("the server ends the connection", how == BYRESET);
}

/* ---- requesters ---- */

static const char *
somebody(void)
{
	char *s;

	if (!fault(ODDJID, 300))
		return people[rnd(npeople)];
	switch (rnd(12)) {
	case 0:
		return fmt("%sx/r", target);
	case 1:
		return "b.test";
	case 2:
		return "u@b.test/%41 b/c@d'\"&<>";
	case 3:
		return "j\xc3\xbcrgen@b.test/\xd7\xa9\xd7\x9c\xd7\x95\xd7\x9d abc";
	case 4:
	case 5:
	case 6:
		s = repeat('l', 1021 + rnd(4));
		memcpy(s, "long@b.test/", 12);
		if (rnd(2)) {
			memcpy(s + 12, "\xc3\xbc", 2);
			s[strlen(s) - 4] = '\0';
		}
		return s;
	case 7:
		return fmt("%s@b.test", repeat('n', 1023 + rnd(2)));
	case 8:
		return fmt("k@b.test/%s", repeat('k', 90 + rnd(200)));
	}
	return "u@b.test/\x7f";
}

static const char *
someid(void)
{
	if (!fault(ODDID, 350))
		return fmt("i%lu", ++token);
	switch (rnd(8)) {
	case 0:
	case 1:
		return theseed / 3 & 1 ? NULL : "";
	case 2:
	case 3:
		return "same";
	case 4:
		return "<'\"&>\t%/";
	case 5:
		return repeat('i', REQUESTSIZE - 60 + rnd(60));
	case 6:
		return repeat('i', REQUESTSIZE + rnd(200));
	}
	if (!fault(HUGE, 200))
		return "\xc3\xbc";
	return repeat('i', rnd(2) ? MAXSTANZA - 300 + rnd(400) : BUILD == 1 ? 600000 : 2 * MAXSTANZA);
}

static const char *
someaddress(void)
{
	if (!often(wild ? 300 : 200))
		return domain;
	switch (rnd(wild ? 13 : 2)) {
	case 2:
		return fmt("%s/x", domain);
	case 3:
		return fmt("n@%s/u@b.test", domain);
	case 4:
		return fmt("x%s", domain);
	case 5:
		return fmt("@%s", domain);
	case 6:
		return fmt("%s/", domain);
	case 7:
		return "PROXY.test";
	case 8:
		return fmt("%s@%s", repeat('n', 1022 + rnd(3)), domain);
	}
	return fmt("node%u@%s", rnd(3), domain);
}

/* Somebody sends something, most often a request. */
static void
send1(const char *f)
{
	static const char *const types[] = { "gets", "", NULL, "probe", "GET", "unavailable" };
	static const char *const ptypes[] = {
		NULL, "unavailable", "subscribe", "subscribed", "probe", "unsubscribed", "unsubscribe",
		"error", "odd"
	};
	static const char *const leads[] = {
		"/", "//", "w0", "%", "%/x", "%2F/x", "w%30/x", "w0/", "w0//", "w0/a/b", "w%/x",
		"W0/x", "w0%00/x", "%C3/x", "w0'\"<&>/'\"<&>"
	};
	static const char *const ownids[] = {
		"due99999999999999999999", "due0", "due00000000", "ask00000000", "ping", ""
	};
	const char *to = someaddress(), *id = someid(), *type = rnd(2) ? "get" : "set", *e;
	const char *kind = "iq", *body = NULL;
	struct worker *w;
	size_t head = 0;

	count("sent to the proxy");
	if (fault(MESSAGE, 200)) {
		kind = "message";
		type = rnd(2) ? rnd(3) ? NULL : "chat" : rnd(3) ? "normal" : rnd(2) ? "headline" : "error";
		body = rnd(3) ? fmt("<body>%lu</body>", ++token) : rnd(3) ?
		       fmt("<active xmlns='http://jabber.org/protocol/chatstates' n='%lu'/>", ++token) : rnd(2) ?
		       fmt("<sent xmlns='urn:xmpp:carbons:2'>%lu</sent>", ++token) : content(0, 0);
		e = encode(fullname(workers + rnd(nworkers)));
		if (relay && rnd(4) == 0 && e)
			to = under(domain, e);
	} else if (fault(PRESENCE, 100)) {
		kind = "presence";
		type = ANY(ptypes);
		f = rnd(4) ? f : fmt("%sx/r", target);
	} else if (fault(STRAY, 100)) {
		type = rnd(2) ? "result" : "error";
		w = workers + rnd(nworkers);
		if (rnd(2))
			id = rnd(2) ? ANY(leads) : lead(w->name, rnd(2) ? fmt("r%u", rnd((unsigned)owns + 1)) : id);
		to = rnd(4) ? to : under(domain, "x");
		body = content(0, 0);
	} else if (fault(STRAY, 40)) {
		/* a server that folds the case of domains brings back what was sent to ours */
		type = rnd(2) ? "result" : ANY(types);
		id = rnd(4) ? ANY(ownids) : fmt("due%08x", rnd(UINT_MAX));
		kind = rnd(3) ? "iq" : "message";
		f = to = domain;
	} else if (fault(STRAY, 60)) {
		w = workers + rnd(nworkers);
		type = rnd(2) ? "result" : "error";
		body = content(0, 0);
		f = fullname(w);
		to = under(domain, "u@b.test/stray");
	} else if (fault(ODDTYPE, 100)) {
		type = ANY(types);
		body = content(0, 0);
	} else if (fault(ODDTYPE, 30)) {
		f = rnd(2) ? target : under(target, "w0");
		body = content(0, 0);
	} else if (fault(ODDTYPE, 30)) {
		f = rnd(2) ? NULL : rnd(2) ? "" : domain;
		body = content(0, 0);
	} else {
		e = encode(f);
		if (e && fault(OVERFLOW, 60))
			head = headbytes("iq", type, id, under(to, e), fullname(workers));
		body = content(head, (int)rnd(3) - 1);
	}
	tell(kind, type, id, f, to, body);
}

static void
sendmore(void *p, long every)
{
	int n = 1;

	if (vt >= finaltime)
		return;
	if (fault(FLOOD, 10))
		n = (int)spread(10, BUILD == 1 ? 6000 : 300);
	for (; n > 0; n--)
		send1(n > 1 ? people[0] : somebody());
	at(vt + (healed ? 8 : 1) * (wild == 0 ? every : 1 + (long)rnd(2 * (unsigned)every)), sendmore, NULL,
	   every, 0);
}

/* ---- what goes wrong ---- */

/* The server stops listening for a while. */
static void
downfor(int how, long long ms)
{
	int i;

	for (i = 0; i < naddrs; i++) {
		addrs[i] = how;
		at(vt + ms, set, addrs + i, SERVES, 0);
	}
}

static void
linkup(void *p, long arg)
{
	unsigned i;

	note("the link to the target's server is back");
	linkdown = 0;
	for (i = 0; rnd(2) && i < nworkers; i++)
		shows(workers + i, 0);
}

static void
moodover(void *p, long arg)
{
	if (vt >= moodend)
		mood = FINE;
}

static void
logback(void *p, long arg)
{
	if (logstate != LOGCLOSED)
		logstate = 0;
	logused = 0;
}

/* The connection, or the server, is in trouble for t ms. */
static void
networktrouble(int f, long long t)
{
	static const char *const errors[] = {
		"conflict", "system-shutdown", "policy-violation", "internal-server-error", "reset",
		"connection-timeout", "resource-constraint", "see-other-host", "undefined-condition"
	};
	const char *cond;
	unsigned i;

	if (f == CUT) {
		serverends(NULL, c.tls && rnd(2) ? INONEPIECE : rnd(2) ? TORN : ABRUPTLY);
	} else if (f == RESET) {
		serverends(NULL, BYRESET);
	} else if (f == LOSS && c.open && keepalive) {
		note("network: all is lost from now on");
		c.dead = 1;
	} else if (f == STALL) {
		if (rnd(3))
			c.wstall = vt + t;
		if (rnd(2))
			c.rstall = vt + t;
		note("network: stands still until %lld (up) and %lld (down)", c.wstall / 1000, c.rstall / 1000);
	} else if (f == SLOWLINK) {
		note("network: slow from now on");
		c.rrate = spread(100, 5000);
		tell("iq", "get", fmt("i%lu", ++token), people[0], domain, fmt("<q>%s</q>", filler(rnd(7000))));
	} else if (f == REFUSE) {
		downfor(rnd(4) ? REFUSES : NOROUTE, t);
		if (rnd(4))
			serverends(NULL, ABRUPTLY);
	} else if (f == SILENT) {
		i = rnd((unsigned)naddrs);
		addrs[i] = rnd(2) ? SILENCE : REFUSES;
		at(vt + t, set, addrs + i, SERVES, 0);
		if (rnd(2))
			serverends(NULL, ABRUPTLY);
	} else if (f == STREAMERR) {
		cond = ANY(errors);
		serverends(cond, (int)rnd(3));
	} else if (f == BADSHAKE || f == TRICKLE || f == KICK) {
		mood = f == TRICKLE ? TRICKLES : f == KICK ? KICKS : rnd(4) ? ERRHEADER + (int)rnd(5) : CLOSES;
		moodend = vt + t;
		at(moodend, moodover, NULL, 0, 0);
		serverends("reset", POLITELY);
	} else if (f == RESTART) {
		for (i = 0; i < nworkers; i++)
			if (workers[i].up) {
				goes(workers + i, 0);
				at(vt + t + rnd(10000), comeslater, workers + i, 0, 0);
			}
		if (rnd(2))
			serverends("system-shutdown", POLITELY);
		else
			serverends(NULL, ABRUPTLY);
		downfor(REFUSES, t);
		down = 1;
		at(vt + t, set, &down, 0, 0);
	} else if (f == UNREACH && remote && !linkdown) {
		note("the link to the target's server is down");
		linkdown = 1;
		at(vt + 4 * t, linkup, NULL, 0, 0);
	} else if (f == LOGBLOCK || f == LOGFULL || f == LOGCLOSED) {
		note("the log is %s", f == LOGBLOCK ? "read by nobody" : f == LOGFULL ? "full" : "closed");
		logstate = f;
		logused = f == LOGBLOCK && rnd(2) ? 65536 - rnd(3000) : 0;
		at(vt + t, logback, NULL, 0, 0);
	}
}

/* While there is a stream the server says something odd. */
static void
oddtrouble(int f)
{
	static const char *const forbidden[] = {
		"<!-- a comment -->", "<?pi a?>", "<!DOCTYPE a>", "<a></b>", "<iq><iq></b>", "</stream:stream>",
		"<a b='1' b='2'/>", "<a>&undefined;</a>", "\x01<a/>", "<a>\xff\xff</a>", "<u:x/ >"
	};
	const char *s;

	if (f == WHITE) {
		says(rnd(2) ? " " : "\r");
		if (rnd(2))
			says("<x:odd xmlns:x='urn:x'><y/>z</x:odd>");
	} else if (f == BROKEN) {
		s = ANY(forbidden);
		note("server: %s", s);
		says(s);
		says("<x>");
		c.scripted = 0;
	} else if (f == HUGE && c.costlyfrom < 0 && BUILD != 1) {
		c.costlyfrom = c.sent;
		says(fmt("<iq type='get' from='u@b.test/r' to='proxy.test' id='%s'/>",
		         repeat('a', PARSERHARD / 20)));
	}
}

/* Presence of the target, or of others, that is not expected. */
static void
presencetrouble(int f, struct worker *w)
{
	const char *id, *from, *cond;

	if (f == PRERROR && subscription == SUBSCRIBED) {
		id = rnd(4) ? NULL : nasks && rnd(2) ? lastid() : "x";
		from = rnd(2) ? target : fullname(w);
		cond = rnd(3) ? "recipient-unavailable" : "remote-server-timeout";
		tell("presence", "error", id, from, domain, errorbody(rnd(4) ? "cancel" : "wait", cond));
	} else if (f == ROSTERLOST) {
		note("server: the roster entry is lost");
		subscription = NOSUB;
	} else if (f == UNSUB && subscription == SUBSCRIBED) {
		subscription = NOSUB;
		telltype("unsubscribed", rnd(2) ? target : fullname(w));
	} else if (f == ASKED) {
		id = rnd(2) ? "a" : NULL;
		tell("presence", rnd(2) ? "subscribe" : "probe", id, target, domain, NULL);
	} else if (f == FOREIGN) {
		from = fmt(rnd(2) ? "%sx/w0" : "x%s/w0", target);
		telltype(rnd(2) ? NULL : "unavailable", from);
		if (w->up)
			tell("presence", rnd(2) ? NULL : "unavailable", NULL, fullname(w), fmt("n@%s", domain), NULL);
		if (!cansee())
			return;
		from = repeat('r', 1022 + rnd(3));
		telltype(NULL, under(target, rnd(2) ? from : ""));
		telltype("unavailable", under(target, from));
		if (rnd(2))
			telltype(NULL, under(target, "z/notours"));
		telltype("unavailable", under(target, "z/notours"));
	}
}

/* Worker w is in trouble for t ms. */
static void
workertrouble(int f, struct worker *w, long long t)
{
	if (f == HUNG) {
		w->hung = !w->hung;
	} else if (f == BOUNCE) {
		shows(w, 0);
	} else if (f == DIE && w->up) {
		goes(w, often(300));
		at(vt + t, comeslater, w, 0, 0);
	} else if (f == HIBERNATE && w->up) {
		note("worker %s dies and stays online", w->name);
		w->alive = 0;
		at(vt + 1000 * (5 + rnd(600)), goneunseen, w, 0, 0);
	} else if (f == REPLACE && w->up) {
		goes(w, 0);
		comes(w);
	}
}

static void
trouble(void *p, long every)
{
	struct worker *w = workers + rnd(nworkers);
	long long t = 1000LL * spread(1, often(100) ? 4000 : 300);
	int f = (int)rnd(BEHAVIOURS);

	if (healed)
		return;
	at(vt + 1 + (long)rnd(2 * (unsigned)every), trouble, NULL, every, 0);
	if (!fault(f, 1000))
		return;
	networktrouble(f, t);
	if (c.scripted)
		oddtrouble(f);
	presencetrouble(f, w);
	workertrouble(f, w, t);
	if (f == USR1)
		handle(SIGUSR1);
}

/* ---- the end of a world ---- */

/* All faults stop. Within bound() every request has to be served again: the
 * pause that may have begun, all addresses, of which one accepts at once, the
 * detection of a connection that is dead, the longest pause between two
 * subscriptions, two probes until who is gone is known to be, and the time that
 * a request may take that a worker has, who was lost. */
static long long
bound(void)
{
	return 1000LL * (backoffmax + 1 + naddrs * (2LL * patience + 1) + 2LL * keepalive + 1 +
	       askmax + 3LL * (refresh + patience) + answertime + 10);
}

static void
heal(void *p, long arg)
{
	struct worker *w;
	int i;

	note("all faults stop");
	healed = 1;
	for (i = 0; i < naddrs; i++)
		addrs[i] = SERVES;
	mood = FINE;
	down = linkdown = 0;
	c.wstall = c.rstall = 0;
	c.rrate = c.wrate = c.latency = 0;
	c.rcap = MAX(c.rcap, 65536);
	c.wcap = MAX(c.wcap, 65536);
	if (c.open && inflight() > 0 && !c.dead) {
		c.wpending = 0;
		drains(vt);
	}
	if (c.open && c.dead) {
		c.dead = 0;
		cut("the connection that was lost is reset", 1);
	}
	if (c.open && !c.scripted && sin_.stopping)
		cut("the server ends what it has broken", 0);
	if (c.open && c.connected && !c.dead && !c.rst) {
		c.rpending = 0;
		arrives(vt);
	}
	logstate = 0;
	logused = 0;
	for (w = workers; w < workers + nworkers; w++) {
		/* what was lost, and waits for ever, ends when its worker leaves */
		w->up |= !answertime;
		if (!answertime)
			subscription = SUBSCRIBED;
		if (w->hung || !w->alive || w->delay > 1000 || !answertime)
			goes(w, 0);
		w->hung = w->wrong = w->twice = w->errs = 0;
		w->delay = 100;
		if (w == workers || rnd(2))
			comes(w);
	}
	if (subscription == PENDING)
		at(vt, accepted, NULL, 0, 0);
}

static void
lastrequest(void *p, long n)
{
	if (n == 0 && !c.scripted)
		bad("recovery", "is not online %lld s after the faults have stopped", (vt - healtime) / 1000);
	tell("iq", "get", fmt("final%ld", n), finaljid, domain, content(0, 0));
	nfinal++;
}

static void
isserved(void *p, long arg)
{
	if (finals != nfinal)
		bad("recovery", "%d of %d requests are answered %lld s after the faults have stopped", finals,
		    nfinal, (vt - healtime) / 1000);
	count("worlds served at the end");
}

static void
terminate(void *p, long sig)
{
	/* where places are few some move as they share one */
	if (BUILD != 0 && total->stayed > 60 && total->moved == 0)
		bad("sticktime", "nobody has ever moved to who has joined, though %.0f should have", total->stayed);
	if (!c.open && rounds && !p && rnd(2)) {
		termarmed = (int)sig;
		at(vt + 2000, terminate, &termarmed, sig, 0);
	} else if (!p || termarmed) {
		termarmed = 0;
		handle((int)sig);
	}
}

static void
overtime(void *p, long arg)
{
	if (!stopped && (slept < 0 || vt >= slept + 2000))
		bad("term", "does not leave %lld ms after a signal", vt - termat);
	at(vt + 30000, overtime, NULL, 0, 0);
}

/* ---- worlds ---- */

static int
seedprng(const br_prng_class **ctx)
{
	uint64_t b[4];
	size_t i;

	for (i = 0; i < 4; i++)
		b[i] = scramble(entropy += 0x9e3779b97f4a7c15);
	(*ctx)->update(ctx, b, sizeof(b));
	return 1;
}

/* All entropy of the program and of the server's TLS is the seed's. */
br_prng_seeder
br_prng_seeder_system(const char **name)
{
	if (name)
		*name = "the world";
	return seedprng;
}

/* Bytes as hexadecimal digits. */
static const char *
hexof(const unsigned char *b, size_t n, const char *format, const char *between)
{
	char *s = mem(3 * n + 1), *p = s;
	size_t i;

	for (i = 0; i < n; i++) {
		p = stpcpy(p, i > 0 ? between : "");
		p += sprintf(p, format, b[i]);
	}
	return s;
}

static void
settletls(void)
{
	br_sha256_context sha;
	unsigned char pin[32], other[32];
	char digits[3] = "";
	size_t i;
	int two;

	for (i = 0; i < sizeof(cert); i++) {
		memcpy(digits, certhex + 2 * i, 2);
		cert[i] = (unsigned char)strtol(digits, NULL, 16);
	}
	br_sha256_init(&sha);
	br_sha256_update(&sha, cert, sizeof(cert));
	br_sha256_out(&sha, pin);
	for (i = 0; i < sizeof(other); i++)
		other[i] = (unsigned char)(i + 7);
	two = (int)rnd(2);
	if (on[TLSBAD])
		pin[rnd(32)] ^= (unsigned char)(1 << rnd(8));
	tlspin = fmt("%s%s", two ? fmt("%s,", hexof(other, sizeof(other), "%02x", "")) : "",
	             hexof(pin, sizeof(pin), "%02X", ":"));
}

/* Choose the settings: what config.h holds. */
static void
settle(void)
{
	domain = "proxy.test";
	secret = "secret <&>";
	host = rnd(2) ? "server.test" : "127.0.0.1";
	port = "5347";
	remote = rnd(3) ? 0 : 1 + (int)rnd(3);
	target = remote ? "svc@far.test" : "svc@b.test";
	prefix = rnd(8) ? "" : "w";
	choice = (int)rnd(4);
	relay = (int)rnd(2);
	keepalive = rnd(6) ? spread(5, 120) : 0;
	/* a handshake that fails costs as much of our time as one that does not */
	backoffmax = spread(on[TLSBAD] ? 30 : 1, 60);
	patience = spread(2, 15);
	askmin = spread(5, 60);
	askmax = askmin + rnd(rnd(4) ? 200 : 3600);
	refresh = patience + 1 + spread(0, 300);
	answertime = spread(5, 300);
	if (!relay && !rnd(10))
		answertime = 0;
	stall = rnd(4) ? spread(1, 30) : 0;
	retry = rnd(4) ? rnd(3) : 1;
	sticktime = rnd(3) ? spread(1, 300) : 0;
	tlspin = "";
	on[TLSBAD] &= on[TLS];
	if (on[TLS])
		settletls();
	naddrs = wild == 0 ? 1 : 1 + (int)rnd(NADDR);
}

/* One setting is wrong: it is refused before anything else is done. */
static void
spoil(void)
{
	static const char *const wrong[][2] = {
		{ "", "" }, { "proxy.test.", "svc" }, { "Proxy.test", "@b.test" }, { "a@proxy.test", "svc@b.test/r" },
		{ "proxy test", "svc@b.test." }, { "p/r", "svc@proxy.test" }, { "proxy\177", "svc@b.test@c" }
	};
	unsigned *const times[] = { &keepalive, &answertime, &backoffmax, &patience, &askmin, &askmax, &refresh };
	unsigned i = rnd(COUNT(wrong)), t = rnd(COUNT(times));

	switch (rnd(5)) {
	case 0:
		domain = wrong[i][0];
		break;
	case 1:
		target = wrong[i][1];
		break;
	case 2:
		*(i < 2 ? &secret : i < 4 ? &host : &port) = "";
		tlspin = i == 6 ? "00:11" : tlspin;
		break;
	case 3:
		choice = i < 3 ? -1 : 4;
		prefix = i == 6 ? "\xff" : prefix;
		break;
	case 4:
		*times[t] = t > 1 && i < 2 ? 0 : i < 5 ? 30 * 86400 + 1 : 4000000000u;
		askmax = t == 4 && askmin ? askmin : askmax;
	}
	spoilt = 1;
	note("a setting is wrong");
}

/* Write the settings down for whoever has to replay a failure. */
static void
writesettings(void)
{
	int i;

	settings = fmt("choice %d relay %d keepalive %u backoffmax %u patience %u askmin %u askmax %u "
	               "refresh %u answertime %u stall %u retry %u sticktime %u prefix '%s' addresses %d target %s;",
	               choice, relay, keepalive, backoffmax, patience, askmin, askmax, refresh, answertime,
	               stall, retry, sticktime, prefix, naddrs, target);
	for (i = 0; i < BEHAVIOURS; i++)
		if (on[i])
			settings = fmt("%s %s", settings, behaviours[i].name);
}

static const char *
workername(unsigned i)
{
	if (on[ODDJID] && rnd(4) == 0 && i > 0)
		switch (rnd(5)) {
		case 0:
			return fmt("w%05d%s", i, repeat('L', 1016 + rnd(2)));
		case 1:
			return fmt("w\xc3\xbc%d\xd7\xa9", i);
		case 2:
			return fmt("w/<'\"&%%>%d x", i);
		case 3:
			return fmt("other%d", i);
		}
	return fmt("w%d", i);
}

/* Make the people of this world. */
static void
populate(void)
{
	struct worker *w;
	unsigned i;

	nworkers = BUILD == 0 ? 1 + rnd(6) : BUILD == 1 ? 1 + spread(0, 30) : 1 + rnd(60);
	if (on[MANY])
		nworkers = BUILD == 0 ? 12 : BUILD == 1 ? 200 + rnd(1300) : 120;
	if (wild == 0)
		nworkers = MIN(nworkers, MAXRESOURCES);
	workers = mem(nworkers * sizeof(*workers));
	for (i = 0; i < nworkers; i++) {
		w = workers + i;
		w->name = workername(i);
		w->delay = on[SLOW] && rnd(3) == 0 ? 1 + rnd(answertime ? 2000 * answertime : 100000) :
		           wild ? rnd(2000) : 0;
		w->hung = on[HUNG] && rnd(4) == 0;
		w->mute = rnd(3) == 0; /* as six of fourteen libraries */
		w->punctual = on[SLOW] && rnd(4) == 0;
		w->wrong = on[WRONG] && rnd(3) == 0;
		w->twice = on[TWICE] && rnd(2);
		w->errs = on[ERRORS] && rnd(2) == 0 ? 10 + (int)rnd(500) : 0;
		w->presbytes = on[BIGPRES] ? rnd(BUILD == 0 ? 1000 : 3000) : 0;
		at(wild ? rnd(20000) : 0, comeslater, w, 0, 0);
	}
	npeople = 1 + rnd(20);
	people = mem(npeople * sizeof(*people));
	for (i = 0; i < npeople; i++)
		people[i] = fmt("u%d@b.test/r%d", i / 3, i);
	style = (int)rnd(4);
	quote = rnd(4) ? '\'' : '"';
	prosody = (int)rnd(2);
	listsall = (int)rnd(2);
	accepttime = wild ? rnd(60000) : 0;
	subscription = rnd(2) ? SUBSCRIBED : NOSUB;
}

/* Say what happens first, and at the end. */
static void
plan(void)
{
	static const int sigs[] = { SIGTERM, SIGTERM, SIGTERM, SIGINT, SIGINT, SIGINT, SIGHUP, SIGQUIT };
	long long end;
	int i, n;

	healtime = 1000LL * spread(60, wild ? 7200 : 3600);
	/* so many presences that a world takes a moment of the machine's time */
	i = (int)(nworkers * ((healtime + bound()) / 1000) / (on[BIGPRES] ? 4000 : 20000));
	refresh = MAX(refresh, (unsigned)i);
	finaltime = healtime + bound();
	n = (int)spread(30, often(100) ? 3000 : 600);
	at(rnd(2000), sendmore, NULL, (long)(healtime / n + 1), 0);
	if (wild) {
		i = (int)rnd(20000);
		at(i, trouble, NULL, (long)(healtime / (int)(spread(3, 40) * BEHAVIOURS / 8) + 1), 0);
	}
	at(healtime, heal, NULL, 0, 0);
	if (!on[TLSBAD]) {
		n = 3 + (int)rnd(10);
		for (i = 0; i < n; i++)
			at(finaltime + i * 300, lastrequest, NULL, i, 0);
		at(finaltime + n * 300 + 4000, isserved, NULL, 0, 0);
	}
	end = rnd(4) ? finaltime + n * 300 + 4000 + rnd(1000) : rnd(2) ? rnd((unsigned)healtime) : rnd(20000);
	termarmed = rnd(40) ? 0 : SIGTERM; /* as soon as a stream opens */
	at(end, terminate, NULL, ANY(sigs), 0);
	at(end + 30000, overtime, NULL, 0, 0);
}

/* The machine's time passes and the world's does not. */
static void
stuck(int sig)
{
	bad("stuck", "takes more than 90 s of the machine's time");
}

/* Nothing of one world is left in the next, if that is in the same process. */
__attribute__((no_sanitize("address")))
static void
reset(void)
{
#ifdef INPROCESS
	static char *bounds[][2] = { { __start_cpbss, __stop_cpbss }, { __start_wbss, __stop_wbss } };
	size_t n = (size_t)(__stop_cpdata - __start_cpdata), i;
	volatile char *s, *data = __start_cpdata;

	if (!saved && (saved = malloc(n)))
		for (i = 0; i < n; i++)
			saved[i] = data[i];
	for (i = 0; i < n; i++)
		data[i] = saved[i];
	for (i = 0; i < 2; i++)
		for (s = bounds[i][0]; s < bounds[i][1]; s++)
			*s = 0;
#endif
}

static void
world(uint64_t seed)
{
	static const unsigned shares_[] = { 0, 60, 200, 400 };
	static char arg0[] = "client_proxy";
	char *argv[] = { arg0, NULL };
	struct chunk *k;
	unsigned p;
	int i;

	reset();
	theseed = seed;
	chance = scramble(seed + 1);
	entropy = scramble(seed + 77777);
	tracehash = 0xcbf29ce484222325;
	blocks.next = blocks.prev = &blocks;
	openlist.next = openlist.prev = &openlist;
	lastend = termat = slept = paused = -1;
	budget = 60000;
	wild = (int)rnd(8) / 2;
	for (i = 0; i < BEHAVIOURS; i++) {
		p = i == TLS || i == DECLS ? 150 : shares_[wild] * behaviours[i].weight / 100;
		on[i] = (char)often(p);
		on[i] &= !listed(without, behaviours[i].name);
		on[i] |= listed(with, behaviours[i].name);
	}
	settle();
	populate();
	plan();
	if (!rnd(12))
		spoil();
	writesettings();
	total->worlds++;
	if (verbose)
		fprintf(stderr, "seed %llu, build %d, wild %d: %s\n", (unsigned long long)seed, BUILD, wild, settings);
	running = 1;
#ifndef FUZZ                            /* libFuzzer has a limit of its own */
	setitimer(ITIMER_PROF, &(struct itimerval){ .it_value = { 90, 0 } }, NULL);
#endif
	if (!setjmp(ending))
		client_proxy(1, argv);
	running = 0;
	total->hours += (double)vt / 3600000;
	total->hash = fnv(total->hash, &tracehash, sizeof(tracehash));
	if (verbose)
		fprintf(stderr, "trace %016llx\n", (unsigned long long)tracehash);
	if (sin_.p) {
		XML_ParserFree(sin_.p);
		XML_ParserFree(sout.p);
	}
	while (blocks.next != &blocks)
		w_free(blocks.next + 1);
	while ((k = chunks)) {
		chunks = k->next;
		free(k);
	}
}

static const char *
env(const char *name)
{
	return getenv(name) ? getenv(name) : "";
}

/* Before the first world. */
static void
prepare(void)
{
	total = mmap(NULL, sizeof(*total), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	masked = env("WORLDMASK");
	without = env("WORLDWITHOUT");
	with = env("WORLDWITH");
	signal(SIGPROF, stuck);
}

#ifdef FUZZ
int
LLVMFuzzerTestOneInput(const unsigned char *data, size_t size)
{
	if (!total)
		prepare();
	fuzzbytes = data;
	nfuzzbytes = size;
	world(fnv(0, data, size));
	return 0;
}
#else

/* Run one world, in a process of its own: 1 if it is bad. */
static int
isbad(uint64_t seed)
{
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		world(seed);
		exit(0);
	}
	waitpid(pid, &status, 0);
	if (WIFSIGNALED(status) || WEXITSTATUS(status) > 1)
		fprintf(stderr, "seed %llu, build %d: the process dies\n", (unsigned long long)seed, BUILD);
	return status != 0;
}

/* usage: world SECONDS SEED STEP: run SEED, SEED + STEP, ... for so long; with 0
 * seconds only SEED, and tell all. With -N instead of seconds: so many worlds. */
int
main(int argc, char **argv)
{
	uint64_t seed, step;
	time_t begun = time(NULL);
	long seconds;
	size_t i;

	if (argc != 4)
		return 2;
	seconds = atol(argv[1]);
	seed = strtoull(argv[2], NULL, 10);
	step = strtoull(argv[3], NULL, 10);
	verbose = seconds == 0;
	prepare();
	do {
		if (isbad(seed))
			return 1;
		seed += step;
	} while (seconds < 0 ? total->worlds < -seconds : time(NULL) - begun < seconds);
	printf("build %d: %.1f hours, %ld worlds", BUILD, total->hours, total->worlds);
	for (i = 0; total->counts[i].what; i++)
		printf(", %ld %s", total->counts[i].n, total->counts[i].what);
	printf("\ntrace %016llx\n", (unsigned long long)total->hash);
	return 0;
}
#endif /* FUZZ */
#endif /* PROGRAM */
#endif /* WORLDCONFIG */
END

# Read the load of the benchmark, which prints microseconds of CPU time:
#	load parse FILE TIMES PIECE     expat alone over FILE, so many times as one
#	                                stream, in pieces of so many bytes
#	load run COMMAND...
#	load serve FILE TIMES STANZAS RESOURCES PORT COMMAND...
#	        the command's, with a server that sends FILE so many times; also how
#	        long that took, the peak of its resident memory in KiB, stanzas lost;
#	        with -1 resources the command is not greeted as a component; with a `u'
#	        behind their number a tenth of them hangs and a tenth drains
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

/* The first resources get requests and do not say a word, until they have been pinged
 * twice. */
static void
hang(int fd, int n)
{
	static const char due[] = "<iq type='get' id='due", stall[] = "id='stall'";
	char *d = buf, *p = buf, *s, *e;
	int i, pings = 0;
	size_t len = 0;
	ssize_t r;

	for (i = 0; i < 20 * n; i++)
		dprintf(fd, "<iq type='set' id='h%d' from='h%d@h/r' to='proxy.localhost'/>", i, i);
	while (pings < 2 * n) {
		if ((r = read(fd, buf + len, sizeof(buf) - len - 1)) <= 0)
			errx(1, "waited in vain for pings");
		buf[len += (size_t)r] = '\0';
		while ((s = strstr(d, due)) && (e = strstr(s, "</iq>"))) {
			dprintf(fd, "%.*s", (int)(e + 5 - s), s);
			d = e;
		}
		for (; (s = strstr(p, stall)); p = s + 1)
			pings++;
	}
}

static void
greet(int fd, int resources, int unwell)
{
	int i;

	dprintf(fd, "<stream:stream id='1' xmlns='jabber:component:accept' "
	        "xmlns:stream='http://etherx.jabber.org/streams'><handshake/>");
	await(fd, "subscribe");
	dprintf(fd, "<presence type='subscribed' from='service@localhost' "
	        "to='proxy.localhost'/>");
	await(fd, "probe");
	for (i = 0; i < resources; i++) {
		if (unwell && i == resources / 10)
			hang(fd, i);
		dprintf(fd, "<presence from='service@localhost/r%d' to='proxy.localhost'>%s"
		        "</presence>", i, unwell && i >= resources / 10 && i < resources / 5 ?
		        "<show>dnd</show>" : "");
	}
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
		greet(fd, atoi(argv[5]), !!strchr(argv[5], 'u'));
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
	hear user "<iq" "id='$r/version'" "type='get'" "from='proxy.localhost'"
	tell user "<iq type='result' id='$r/version' to='proxy.localhost'>
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

# So many gets, fifty a second, while the worker with this pid is killed: each has an
# answer, within the time it may take to see that somebody hangs.
killed_meanwhile() {
	"$peer" steady "$c2s" user x proxy.localhost "$1" 50 >"$dir/asked" &
	asker=$!
	sleep 1
	end "$2" 9
	wait $asker || :
	cat "$dir/asked"
	awk -v n="$1" '$1 != n || $3 != n || $(NF - 1) != 0 { exit 1 }
	{ for (i = 1; i < NF; i++) if ($i == "slowest") exit !($(i + 1) < 2 * 2000 + 2000) }' "$dir/asked"
}

# Workers of two libraries. One with stream management dies, and its server keeps it
# online for minutes; then one without.
workers_die() {
	"$1"
	build_peer
	proxy stall=2
	services a
	library_worker kept slixmpp-sm
	dies=$pid
	library_worker slixmpp slixmpp-sm
	library_worker twisted twisted
	tell a "<presence type='unavailable'/>"
	logged "left: service@localhost/a: 3 online"
	await grep sm "$dir/kept.python"
	killed_meanwhile 700 "$dies"
	unlogged "left: service@localhost/kept"
	logged_times 1 "stalled: service@localhost/kept"
	library_worker plain slixmpp
	killed_meanwhile 200 "$pid"
	logged "left: service@localhost/plain"
	logged_times 1 "stalled: "
	unlogged recovered
}

# On this server, for so many seconds: ten workers that have something in hand, of
# which one is killed and started again each second, and 500 gets a second. Each has
# an answer, and only one.
storm() {
	"$1"
	build_peer
	proxy
	services a
	cut_off a
	logged "left: service@localhost/a: 0 online"
	for r in b c d e f g h i j k; do
		peer worker "$c2s" service localhost $r 10
		eval "pid_$r=$pid"
		logged "joined: service@localhost/$r:"
	done
	"$peer" steady "$c2s" user x proxy.localhost $(($2 * 500)) 500 >"$dir/asked" &
	asker=$!
	i=0
	while [ $i -lt "$2" ]; do
		r=$(echo bcdefghijk | cut -c $((i % 10 + 1)))
		eval "end \$pid_$r 9"
		peer worker "$c2s" service localhost "$r" 10
		eval "pid_$r=$pid"
		sleep 1
		i=$((i + 1))
	done
	wait $asker || :
	cat "$dir/asked"
	logged "failed: [0-9]* requests"
	grep "^$(($2 * 500)) sent, $(($2 * 500)) answered, 0 errors; .* 0 twice$" "$dir/asked"
	stop
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

# When it has had its time a second ping follows: what came before that is read.
probe_is_over() {
	hear srv "<iq type='get' id='$(last_ask)' from='proxy.localhost' to='proxy.localhost'>"
	tell srv "$heard"
}

probe_is_read() {
	hear srv "<presence type='probe' id='[^']*' from='proxy.localhost' to='service@localhost'/>"
	probe_is_over
}

# When something is due a ping goes out, which is back after all that has come.
is_due() {
	hear srv "<iq type='get' id='due[0-9a-f]*' from='proxy.localhost' to='proxy.localhost'>"
	tell srv "$heard"
}

# Resource $1 has been silent with a request for too long, again: it is pinged.
is_pinged() {
	tries=600
	until find_stanza srv "^<iq type='get' id='stall' from='proxy.localhost' to='service@localhost/$1'><ping xmlns='urn:xmpp:ping'/></iq>$"; do
		! find_stanza srv "^<iq type='get' id='due" || tell srv "$heard"
		tries=$((tries - 1))
		[ $tries -gt 0 ] || { echo "nobody pings $1"; return 1; }
		sleep 0.05
	done
}

# It says nothing to that either.
is_set_aside() {
	is_pinged "$1"
	is_pinged "$1"
	logged "stalled: service@localhost/$1: silent for"
}

# Resource $1 is handed a request with this id; its type, from whom.
goes_to() {
	deliver iq "${3-get}" "${4-u@h/r}" proxy.localhost "id='$2'/"
	hear srv "^<iq type='${3-get}' id='$2' from='proxy.localhost/${4-u@h/r}' to='service@localhost/$1'/>$"
}

# Sets go out until each of these resources has had one.
each_gets_a_set() {
	for r in "$@"; do
		i=0
		until find_stanza srv "id='$r-" "to='service@localhost/$r'"; do
			i=$((i + 1))
			[ $i -lt 99 ]
			deliver iq set u@h/r proxy.localhost "id='$r-$i'/"
			news
		done
	done
}

# The request with this id is handed on to resource $1.
is_handed_to() {
	hear srv "^<iq type='get' id='$2' from='proxy.localhost/${3-u@h/r}' to='service@localhost/$1'/>$"
}

# What resource $1 says to it, a result, passes.
passes() {
	deliver iq "${3-result}" "service@localhost/$1" "proxy.localhost/${4-u@h/r}" "id='$2'/"
	hear srv "^<iq type='${3-result}' id='$2' from='proxy.localhost' to='${4-u@h/r}'/>$"
}

# Nothing comes out for what it says to it.
is_late() {
	news
	deliver iq "${3-result}" "service@localhost/$1" "proxy.localhost/u@h/r" "id='$2'/"
	news
	[ -z "$news" ] || { echo "a second answer: $news"; return 1; }
}

# The requester with this id has got this error.
has_failed() {
	hear srv "^<iq type='error' id='$2' from='proxy.localhost' to='[^']*'><error type='wait'><$1 "
}

# The proxy has never sent such a stanza.
unsent() {
	! stanzas <"$dir/srv.out" | grep -e "$1" || { echo "sent: $1"; return 1; }
}

joins() {
	online "$@"
	while [ $# -gt 0 ]; do
		logged "joined: service@localhost/$1:"
		shift
	done
}

leaves() {
	deliver presence unavailable "service@localhost/$1" proxy.localhost /
	logged "left: service@localhost/$1: "
}

# Resource $1 shows that.
shows() {
	tell srv "<presence from='service@localhost/$1' to='proxy.localhost'><show>$2</show></presence>"
}

# So many lines of the log are like that.
logged_times() {
	await sh -c "[ \"\$(grep -c -e '$2' '$log')\" = $1 ]"
}

# How the resource fares.
fares() {
	kill -USR1 "$proxypid"
	logged "resource: service@localhost/$1: $2"
}

# Requests from $1 requesters, $2 from each, with ids that begin with $3.
flood() {
	awk -v users="$1" -v n="$2" -v id="$3" 'BEGIN {
		for (i = 1; i <= n; i++)
			for (u = 1; u <= users; u++)
				printf "<iq type=\"set\" id=\"%s%d-%d\" from=\"%s%d@h/r%d\" to=\"proxy.localhost\"/>", id, u, i, id, u, i
	}' >"$dir/srv.in"
}

# Fill the table: the first of thirteen may have half of it, the next half of the
# rest. What they get is in $dir/$1; answer it.
fill() {
	awk -v id="$1" 'BEGIN {
		for (u = 1; u <= 13; u++)
			for (i = 1; i <= (u < 13 ? 2 ^ (12 - u) : 1); i++)
				printf "<iq type=\"set\" id=\"%s%d-%d\" from=\"u%d@h/r\" to=\"proxy.localhost\"/>", id, u, i, u
	}' >"$dir/srv.in"
	await grep -q "id='${1}13-1'" "$dir/srv.out"
	grep -o "<iq type='set' id='$1[^']*' from='[^']*' to='[^']*'" "$dir/srv.out" >"$dir/$1"
	[ "$(wc -l <"$dir/$1")" = 4096 ]
}

answer_all() {
	sed "s/type='set'/type='result'/;s/from=\([^ ]*\) to=\(.*\)/from=\2 to=\1\/>/" "$dir/$1" >"$dir/srv.in"
	await sh -c "[ \"\$(grep -o \"type='result' id='$1\" '$dir/srv.out' | wc -l)\" -ge \"\$(wc -l <'$dir/$1')\" ]"
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
	# an error has a large tag, too
	tell user "<iq type='get' id='$(bytes 200000 i)' to='proxy.localhost/x'/>"
	tell user "$(bytes 200000 " ")"
	ask user last
	await grep -q "id='last'" "$dir/a.out"
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
	awk '{ n += $1; a += $3 + $5 } END { exit !(n == 6000 && a == n) }' "$dir"/asked.?
	logged "failed: [0-9]* requests"
	logged " [0-9]* late.* 0 open"
}

# Workers of real libraries, on servers with stream management: who dies is found, and
# none that answers is ever set aside, be it that it answers no pings.
workers_die_on_prosody() {
	need python3 python3
	python3 -c "import slixmpp, twisted" || need - "python3-slixmpp or python3-twisted"
	workers_die prosody
}

workers_die_on_ejabberd() {
	python3 -c "import slixmpp, twisted" || need - "python3-slixmpp or python3-twisted"
	workers_die ejabberd
}

a_crash_storm() {
	storm prosody 30
}

# One of three workers hangs with sets, for longer than the table of requests lasts:
# nobody is refused, and only what it has waits.
one_hangs_with_sets() {
	build_peer
	prosody
	proxy MAXREQUESTS=64 stall=1
	services a
	for r in b c d; do
		peer worker "$c2s" service localhost $r
		logged "joined: service@localhost/$r:"
	done
	tell a "<presence type='unavailable'/>"
	logged "left: service@localhost/a: 3 online"
	kill -STOP "$pid"
	askers=
	for u in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
		"$peer" steady "$c2s" u$u x proxy.localhost 100 20 set >"$dir/asked.$u" &
		askers="$! $askers"
	done
	# shellcheck disable=SC2086 # several
	wait $askers || :
	cat "$dir"/asked.*
	kill -USR1 "$proxypid"
	logged "counted: 2000 requests, .* 0 resource-constraint"
	logged "stalled: service@localhost/d"
	open=$(sed -n 's,.*resource: service@localhost/d: \([0-9]*\) open.*stalled$,\1,p' "$log")
	awk -v open="$open" '{ a += $3; e += $5 } END { print a, e, open; exit !(open > 0 && open < 40 && a == 2000 - open && e == 0) }' "$dir"/asked.*
}

# One of three hangs, and when it goes on it answers all that it had been asked: others
# have done so, and nobody hears it twice; but it is used again.
one_wakes_up_again() {
	build_peer
	prosody
	proxy stall=1
	services a
	for r in b c d; do
		peer worker "$c2s" service localhost $r
		logged "joined: service@localhost/$r:"
	done
	cut_off a
	logged "left: service@localhost/a: 3 online"
	"$peer" steady "$c2s" user x proxy.localhost 700 100 >"$dir/asked" &
	asker=$!
	sleep 1
	kill -STOP "$pid"
	logged "stalled: service@localhost/d: silent for [23] s, [0-9]* open"
	kill -CONT "$pid"
	logged "recovered: service@localhost/d"
	wait $asker || :
	cat "$dir/asked"
	grep "^700 sent, 700 answered, 0 errors; .* 0 twice$" "$dir/asked"
	kill -USR1 "$proxypid"
	logged "counted: 700 requests, 0 untracked, 700 answers, [1-9][0-9]* late.* 0 open"
	logged_times 1 stalled
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

# An in-band bytestream (XEP-0047) goes both ways over one session.
a_bytestream_goes_both_ways() {
	talk bytestream
}

# A worker learns a requester's version (XEP-0092) and features (XEP-0030).
workers_ask_questions() {
	talk questions
}

# Text, thread, receipts (XEP-0184) and chat states (XEP-0085) pass both ways.
chat_with_receipts_and_states() {
	talk chat
}

# Two workers use equal ids towards one requester.
two_workers_ask_at_once() {
	talk equal_ids
}

# The worker of the man page, as it stands there, but for who and where it is.
the_worker_of_the_man_page_answers() {
	need python3 python3
	python3 -c "import slixmpp" || need - python3-slixmpp
	prosody
	proxy
	sed -n '/^import slixmpp/,/^\.Ed/p' client_proxy.1 | sed '$d' >"$dir/worker.py"
	[ "$(wc -l <"$dir/worker.py")" -eq 15 ]
	background python3 -c "
import slixmpp
class Here(slixmpp.ClientXMPP):
    def __init__(self, jid, password):
        super().__init__('service@localhost/a', 'pw', sasl_mech='PLAIN')
        self['feature_mechanisms'].unencrypted_plain = True
    def connect(self):
        super().connect(('127.0.0.1', $c2s), force_starttls=False, disable_starttls=True)
slixmpp.ClientXMPP = Here
exec(open('$dir/worker.py').read())" >"$dir/python" 2>&1
	logged "joined: service@localhost/a:"
	login user x
	tell user "<iq type='get' id='1' to='proxy.localhost'><hello xmlns='urn:example'/></iq>"
	hear user "<iq" "id='1'" "type='result'" ">Hello user@localhost/x</hello>"
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
	logged "disconnected: the connection was cut, TLS did not end"
	end "$pid"
	front server ",openssl-min-proto-version=TLS1.3"
	grep -v "does not speak TLS" "$log" >"$log.new"
	cat "$log.new" >"$log"
	logged "disconnected: the server does not speak TLS 1.2"
	end "$frontpid"
	front server ",cipher=AES128-SHA"
	logged "disconnected: TLS failed: error $((256 + 40)) of BearSSL"
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
		deliver iq result u@h/r $at "id='a/6'/"
		deliver iq set $a $at/u@h/é "id='7'/"
		deliver iq error u@h/é $at "id='a/7'/"
		deliver iq get u@h/r $at "id='8'/"
		deliver iq result $a $at/u@h/r "id='8'/"
		hear srv "id='8' from='$at' to='u@h/r'"
		news
		[ "$news" = "<message type='chat' id='1' from='$at/u@h/r' to='$a'><body>x</body></message>
<message id='2' from='$at/u@h' to='$a'/>
<message type='error' id='3' from='$at/u@h/r' to='$a'/>
<message type='chat' id='4' from='$at' to='u@h/r'/>
<message type='error' id='5' from='$at' to='u@h/é'/>
<iq type='get' id='a/6' from='$at' to='u@h/r'/>
<iq type='result' id='6' from='$at/u@h/r' to='$a'/>
<iq type='set' id='a/7' from='$at' to='u@h/é'/>
<iq type='error' id='7' from='$at/u@h/%C3%A9' to='$a'/>
<iq type='get' id='8' from='$at/u@h/r' to='$a'/>
<iq type='result' id='8' from='$at' to='u@h/r'/>" ]
	done
	unlogged dropped
	kill -USR1 "$proxypid"
	logged "counted: 6 requests, 0 untracked, 6 answers, 0 late, 10 messages.* 0 open"
}

# What comes from our own address others may have made up, as servers fold the case of
# domains: it is a ping of ours only by its id.
pings_to_ourselves_have_ids_of_chance() {
	scripted answertime=60
	goes_to a 1
	for i in due99999999999999999999 due9223372036854775 due0 due00000000 ask00000000 ping ''; do
		deliver iq result proxy.localhost proxy.localhost "id='$i'/"
		deliver message "" proxy.localhost room@proxy.localhost "id='$i'/"
	done
	passes a 1
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
			for type in get set; do
				deliver iq $type $from "proxy.localhost/$y"
			done
			for type in result error; do
				deliver iq $type $from "proxy.localhost/$y" "id='a/1'/"
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
		deliver iq result service@localhost/a "proxy.localhost/$y" "id='1'/"
		deliver presence "" service@localhost/a "proxy.localhost/$y" /
	done
	deliver message chat service@localhost/a proxy.localhost
	deliver iq get service@localhost/a proxy.localhost
	deliver iq result service@localhost/a proxy.localhost "id='a/1'/"
	deliver iq error service@localhost proxy.localhost "id='a/1'/"
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
	deliver message headline u@h/r proxy.localhost/x "id='q'>$b</message"
	deliver message headline service@localhost/a proxy.localhost "id='q'>$b</message"
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
	hear srv "<iq type='get' id='a/1' from='proxy.localhost' to='u@h/r'/>"
	online b
	tell srv "<presence type='unavailable' from='service@localhost/b' to='proxy.localhost'/>"
	tell srv "<presence type='unavailable' from='service@localhost' to='proxy.localhost'/>"
	logged ": 0 online"
	is_due
	hear srv "<iq type='error' id='1' from='proxy.localhost/u@h/r' to='service@localhost/a'><error type='wait'><remote-server-timeout"
	logged "timed out: request of service@localhost/a to proxy.localhost/u@h/r, and"
	joins a
	deliver iq result u@h/r proxy.localhost "id='a/1'/"
	hush srv "<iq type='result'"
	kill -USR1 "$proxypid"
	logged " 1 late.* 0 open"
}

# An answer reaches nobody unless its id begins with the name of a resource that is
# online and a slash. It is counted.
answers_to_nobody_known_are_dropped() {
	scripted relay=1 prefix='"a"'
	online b
	joins ab
	leaves ab
	news
	long=$(bytes 10240 x)
	n=1
	deliver iq result u@h/r proxy.localhost /
	for i in "" a / // % %2 %2F %2f a%2F1 a%2f1 a% a%/1 a%2/1 a%zz/1 a%00/1 a%0A/1 a%FF/1 \
	    %00/1 %C3/1 /1 /a/1 //a/1 %2Fa/1 %/a/1 A/1 %41/1 b/1 ab/1 aa/1 'a /1' ' a/1' é/1 \
	    a%C3%A9/1 "a&apos;/1" '&quot;a&quot;/1' service@localhost/a/1 "$long" "$long/1" "a$long/1"; do
		deliver iq result u@h/r proxy.localhost "id='$i'/"
		deliver iq error u@h/r room@proxy.localhost "id='$i'/"
		n=$((n + 2))
	done
	news
	[ -z "$news" ]
	kill -USR1 "$proxypid"
	logged "counted: 0 requests.* 0 answers, 0 late.* $n dropped"
}

# What follows the first slash is the worker's own id, whatever is in it.
own_ids_of_every_shape() {
	scripted relay=1
	for i in 1 / % %2F %2f b/1 /a/1 "it&apos;s" '&quot;x&quot;' '&lt;&amp;' é🙂 'a b' "$(bytes 10240 x)"; do
		news
		deliver iq get service@localhost/a proxy.localhost/u@h/r "id='$i'/"
		deliver iq result u@h/r proxy.localhost "id='a/$i'/"
		news
		i=$(echo "$i" | sed "s/&apos;/'/;s/&quot;/\"/g")
		q=\'
		[ "$i" != "it's" ] || q=\"
		[ "$news" = "<iq type='get' id=${q}a/$i$q from='proxy.localhost' to='u@h/r'/>
<iq type='result' id=$q$i$q from='proxy.localhost/u@h/r' to='service@localhost/a'/>" ]
	done
	kill -USR1 "$proxypid"
	logged "counted: 13 requests, 1 untracked, 13 answers.* 0 dropped.* 0 open"
}

# A request without an id, or with an empty one, gets one answer, too.
own_ids_that_are_empty() {
	scripted relay=1
	for i in / "id=''/"; do
		deliver iq get service@localhost/a proxy.localhost/u@h/r "$i"
		hear srv "<iq type='get' id='a/' from='proxy.localhost' to='u@h/r'/>"
		deliver iq result u@h/r proxy.localhost "id='a/'/"
		hear srv "<iq type='result'.* from='proxy.localhost/u@h/r' to='service@localhost/a'/>"
	done
	kill -USR1 "$proxypid"
	logged "counted: 2 requests.* 2 answers.* 0 open"
}

# What a resource has asked is forgotten when it leaves: under the same name it begins anew.
who_comes_back_asks_anew() {
	scripted relay=1 answertime=2
	deliver iq get service@localhost/a proxy.localhost/u@h/r "id='1'/"
	hear srv "id='a/1'"
	leaves a
	kill -USR1 "$proxypid"
	logged "counted: 1 requests.* 0 open"
	joins a
	deliver iq get service@localhost/a proxy.localhost/u@h/r "id='1'/"
	hear srv "id='a/1'"
	deliver iq result u@h/r proxy.localhost "id='a/1'/"
	hear srv "^<iq type='result' id='1' from='proxy.localhost/u@h/r' to='service@localhost/a'/>$"
	kill -USR1 "$proxypid"
	logged "counted: 2 requests.* 1 answers.* 0 open"
}

# A resource of any name asks and gets its answer.
names_of_any_spelling_ask() {
	scripted relay=1
	for r in / % %2F x/y%2Fz 100% é🙂 'a b' "it&apos;s" '&amp;&lt;&quot;' "$(bytes 1023 /)" "$(bytes 1023 %)"; do
		news
		online "$r"
		deliver iq set "service@localhost/$r" proxy.localhost/u@h/r
		name=$(echo "$r" | sed 's/%/%25/g;s|/|%2F|g')
		deliver iq result u@h/r proxy.localhost "id='$name/1'/"
		deliver iq error u@h/r proxy.localhost "id='$(echo "$name" | sed 's/%2F/%2f/g')/2'/"
		news
		r=$(echo "$r" | sed "s/&apos;/'/;s/&quot;/\"/")
		name=$(echo "$name" | sed "s/&apos;/'/;s/&quot;/\"/")
		q=\'
		[ "$r" != "it's" ] || q=\"
		[ "$news" = "<iq type='set' id=$q$name/1$q from='proxy.localhost' to='u@h/r'/>
<iq type='result' id='1' from='proxy.localhost/u@h/r' to=${q}service@localhost/$r$q/>
<iq type='error' id='2' from='proxy.localhost/u@h/r' to=${q}service@localhost/$r$q/>" ]
	done
	unlogged dropped
}

# An answer comes from who has sent it, at the address that he has sent it to. Only
# that of who was asked ends the request, and no other's.
answers_of_others_end_nothing() {
	scripted relay=1
	goes_to a 1
	deliver iq get service@localhost/a proxy.localhost/u@h/r
	hear srv "id='a/1'" "to='u@h/r'"
	for f in u@h u@h/other u@h/r/ U@h/r v@h/r h; do
		deliver iq result $f proxy.localhost "id='a/1'/"
		hear srv "^<iq type='result' id='1' from='proxy.localhost/$f' to='service@localhost/a'/>$"
	done
	deliver iq error u@h/r room@proxy.localhost "id='a/1'/"
	hear srv "^<iq type='error' id='1' from='room@proxy.localhost/u@h/r' to='service@localhost/a'/>$"
	kill -USR1 "$proxypid"
	logged "counted.* 2 open"
	deliver iq error u@h/r proxy.localhost "id='a/1'/"
	hear srv "^<iq type='error' id='1' from='proxy.localhost/u@h/r' to='service@localhost/a'/>$"
	kill -USR1 "$proxypid"
	logged "counted.* 1 open"
	passes a 1
}

# Two workers ask one user with the same id: each gets its own answer.
equal_ids_meet_their_own_answers() {
	scripted relay=1
	joins b
	for r in a b; do
		deliver iq get service@localhost/$r proxy.localhost/u@h/r
		hear srv "^<iq type='get' id='$r/1' from='proxy.localhost' to='u@h/r'/>$"
	done
	for r in b a; do
		deliver iq result u@h/r proxy.localhost "id='$r/1'><for-$r xmlns='test'/></iq"
		hear srv "^<iq type='result' id='1' from='proxy.localhost/u@h/r' to='service@localhost/$r'><for-$r "
	done
	kill -USR1 "$proxypid"
	logged "counted: 2 requests.* 2 answers.* 0 open"
}

# What a user says once more after his answer passes, as it would unasked; but not
# after the error for a request that he has not answered in time.
the_users_second_answers() {
	scripted relay=1 answertime=2
	for i in 1 2; do
		deliver iq get service@localhost/a proxy.localhost/u@h/r "id='$i'/"
		hear srv "id='a/$i'"
	done
	for type in result error; do
		deliver iq $type u@h/r proxy.localhost "id='a/1'/"
		hear srv "^<iq type='$type' id='1' from='proxy.localhost/u@h/r' to='service@localhost/a'/>$"
	done
	is_due
	hear srv "^<iq type='error' id='2' from='proxy.localhost/u@h/r' to='service@localhost/a'>.*<remote-server-timeout"
	news
	for type in result error; do
		deliver iq $type u@h/r proxy.localhost "id='a/2'/"
	done
	news
	[ -z "$news" ]
	kill -USR1 "$proxypid"
	logged "counted.* 2 answers, 2 late.* 0 open"
}

# Who is not online for us, or has left, asks nobody.
who_is_not_online_asks_nobody() {
	scripted relay=1 prefix='"a"'
	online b
	joins ab
	leaves ab
	news
	for r in "" / /b /ab /A /a/; do
		deliver iq get "service@localhost$r" proxy.localhost/u@h/r
		hear srv "^<iq type='error' id='1' from='proxy.localhost/u@h/r' to='service@localhost$r'><error type='cancel'><service-unavailable "
		deliver message chat "service@localhost$r" proxy.localhost/u@h/r "id='m'/"
		hear srv "^<message type='chat' id='m' from='proxy.localhost' to='u@h/r'/>$"
	done
	unsent "<iq .*to='u@h/r'"
}

# A user who does not answer what workers ask holds half of the places at most. For what
# is too large, in each direction, they get an error.
the_clients_requests_have_limits() {
	scripted relay=1 MAXREQUESTS=64
	for i in $(seq 40); do
		deliver iq get service@localhost/a proxy.localhost/u@h/r "id='$i'/"
	done
	news
	[ "$(echo "$news" | grep -c "type='get' id='a/")" = 32 ]
	[ "$(echo "$news" | grep -c "^<iq type='error' id='[34].' from='proxy.localhost/u@h/r' to='service@localhost/a'>.*<resource-constraint")" = 8 ]
	logged "busy: 32 requests are open, 32 of u@h/r: refusing more"
	deliver iq get service@localhost/a proxy.localhost/v@h/r "id='1'/"
	hear srv "<iq type='get' id='a/1' from='proxy.localhost' to='v@h/r'/>"
	goes_to a 1 get w@h/r
	{
		printf %s "<iq type='result' id='a/1' from='u@h/r' to='proxy.localhost'>"
		bytes 524288 x
		printf %s "</iq><iq type='set' id='big' from='service@localhost/a' to='proxy.localhost/v@h/r'>"
		bytes 524288 x
		printf %s "</iq>"
	} >"$dir/srv.in"
	for i in u@h/r:1 v@h/r:big; do
		hear srv "<iq type='error' id='${i#*:}' from='proxy.localhost/${i%:*}' to='service@localhost/a'>.*<policy-violation"
	done
	kill -USR1 "$proxypid"
	logged "counted.* 33 open"
}

requests_of_who_leaves_are_answered() {
	scripted retry=0 choice=LEASTBUSY
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
	# the last resource in the table has moved to the place of one that left, with its own
	for i in 6 7 8 9; do
		deliver iq get u@h/r proxy.localhost "id='$i'/"
	done
	news
	[ "$(echo "$news" | grep -c "localhost/b")" = 2 ]
	for r in b c; do
		tell srv "<presence type='unavailable' from='service@localhost/$r' to='proxy.localhost'/>"
		news
		[ "$(echo "$news" | grep -c recipient-unavailable)" = 2 ]
	done
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
	is_due
	hear srv "$(failed_with remote-server-timeout 1 proxy.localhost)"
	news
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
	deliver iq result service@localhost/a proxy.localhost/u@h/r
	hear srv "<iq type='result' id='1'"
	kill -USR1 "$proxypid"
	logged "resource: service@localhost/a: $((n - 1)) open"
	news
	tell srv "<presence type='unavailable' from='service@localhost' to='proxy.localhost'/>"
	news
	[ "$(echo "$news" | grep -c recipient-unavailable)" = $((n + m - 2)) ]
}

a_full_table_sheds_load() {
	scripted REQUESTSIZE=100
	fill a
	for i in 1 2; do
		deliver iq get v@h/r proxy.localhost "id='$i'/"
		has_failed resource-constraint $i
	done
	passes a a1-1 result u1@h/r
	goes_to a 3 get v@h/r
	deliver iq get v@h/r proxy.localhost "id='4'/"
	has_failed resource-constraint 4
	passes a 3 result v@h/r
	logged_times 1 "busy: 4096 requests are open, 0 of v@h/r: refusing more"
	# room again: a new episode, after most have been answered
	sed -i 1d "$dir/a"
	answer_all a
	fill b
	deliver iq get v@h/r proxy.localhost "id='5'/"
	has_failed resource-constraint 5
	logged_times 2 "busy: 4096 requests are open"
	# what has been answered with an error makes room at once
	leaves a
	joins b
	fill c
	answer_all c
	# what cannot be kept in mind counts, too
	x=$(bytes 100 x)
	fill "$x"
	deliver iq get v@h/r proxy.localhost "id='${x}5'/"
	has_failed resource-constraint "${x}5"
	passes b "${x}1-1" result u1@h/r
	logged_times 1 "untracked: "
	news
	leaves b
	news
	[ -z "$news" ]
	kill -USR1 "$proxypid"
	logged " 4096 untracked,.* 5 resource-constraint, 4096 recipient-unavailable"
}

# Errors that the out buffer has no room for wait their turn.
many_fail_at_once() {
	scripted OUTSIZE=550000
	x=$(bytes 400 x)
	awk -v x="$x" 'BEGIN {
		for (i = 0; i < 4000; i++)
			printf "<iq type=\"set\" id=\"%d\" from=\"u%d@h/%s\" to=\"proxy.localhost\"/>", i, i % 1000, x
		print "<presence type=\"unavailable\" from=\"service@localhost\" to=\"proxy.localhost\"/>"
		print "<presence from=\"service@localhost/b\" to=\"proxy.localhost\"/>"
		for (i = 4000; i < 6000; i++)
			printf "<iq type=\"set\" id=\"%d\" from=\"u%d@h/%s\" to=\"proxy.localhost\"/>", i, i % 1000, x
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
	scripted choice=STICKY sticktime=0 MAXREQUESTS=100000
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
	scripted choice=STICKY sticktime=0 MAXREQUESTS=100000
	online k j i h g f e d c b
	logged "joined: .*: 11 online"
	ask_for_many restarted
	cmp "$dir/eleven" "$dir/restarted"
}

thousands_at_once() {
	scripted MAXREQUESTS=12000
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
	[ "$(grep -c -e joined: -e left: "$log")" = 1 ]
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
		hear srv "<presence type='probe'"
		error="><error type='${c#* }'><${c% *} xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></presence"
		deliver presence error service@localhost proxy.localhost "id='$(last_ask)'$error"
		logged "unreachable: service@localhost: ${c% *}"
	done
	unlogged "left: "
	hear srv "<presence type='probe'"
	deliver presence error service@localhost proxy.localhost "id='$(last_ask)'><error
		type='cancel'><gone xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></presence"
	logged "not subscribed: service@localhost: gone"
	logged "left: service@localhost, all.*: 0 online"
}

# When a probe brings nothing, the roster may have lost us.
a_lost_subscription_is_asked_for_again() {
	scripted patience=1
	probed
	probe_is_over
	logged "unanswered: "
	hear srv "<presence type='subscribe' id='$(last_ask)'"
	# nobody is thrown out by that
	deliver iq get u@h/r proxy.localhost
	hear srv "<iq type='get' id='1' .*to='service@localhost/a'"
	probed
	online a
	probe_is_over
	hush srv "<presence type='probe'"
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
	probe_is_over
	# those who were silent may only be late: they are asked once more
	probe_is_read
	unlogged "left: "
	online b c
	probe_is_over
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
	probe_is_over
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
		probe_is_over
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
	stop
	# nor is who has said something before our own ping is back
	scripted stall=1
	goes_to a 1 set
	hear srv "^<iq type='get' id='due"
	due=$heard
	deliver iq result service@localhost/a proxy.localhost/u@h/r "id='other'/"
	tell srv "$due"
	news
	unsent "id='stall'"
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
	[ $(($(wc -l <"$log") - before)) -lt 1500 ]
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
	tell srv "<iq type='get' id='' from='u@h/r' to='proxy.localhost'/><iq type='get' from='u@h/r' to='proxy.localhost'/>"
	is_due
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
	logged "not a stanza"
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

# Those who have left without a word do not keep the table full: who has no place in it
# says, too, that a probe is answered.
the_dead_do_not_fill_the_table() {
	scripted MAXRESOURCES=2 patience=1
	online b c
	logged "ignored: service@localhost/c"
	probed
	online c
	probe_is_over
	probe_is_read
	online c
	probe_is_over
	logged "left: service@localhost/b: 1 online"
	logged "left: service@localhost/a: 0 online"
	online c
	logged "joined: service@localhost/c: 1 online"
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
	[ "$tries" = 1 ]
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
	    keepalive=2592001 host='""' port='""' backoffmax=0 choice=4 \
	    choice=-1 stall=2592001 retry=10 sticktime=2592001 tlspin='" "' tlspin='"12:34"' \
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
	for p in exchanges=140 answers=140 texts=120 elements=140 unwell=140; do
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
	scripted PARSERSOFT=100000 MAXREQUESTS=50000
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
	configure
	build_load
	{
		printf %s "<iq type='get' id='1' from='u@h/r' to='proxy.localhost'><q a='"
		bytes 500000 x
		printf %s "'/></iq>"
	} >"$dir/large"
	for size in 64 100000; do
		cc -shared -fPIC -o "$dir/short.$size.so" -x c - -ldl <<-E
		#define _GNU_SOURCE
		#include <dlfcn.h>
		#include <unistd.h>
		ssize_t
		read(int fd, void *b, size_t n)
		{
			static ssize_t (*real)(int, void *, size_t);

			if (!real)
				real = (ssize_t (*)(int, void *, size_t))dlsym(RTLD_NEXT, "read");
			return real(fd, b, n < $size ? n : $size);
		}
		E
		"$load" serve "$dir/large" 1 1 1 "$cport" env LD_PRELOAD="$dir/short.$size.so" \
		    valgrind -q --tool=callgrind --callgrind-out-file="$dir/cost.$size" "$bin" \
		    2>"$dir/log" >"$dir/lost"
		grep -q " 0$" "$dir/lost"
	done
	small=$(sed -n 's/^summary: //p' "$dir/cost.64")
	large=$(sed -n 's/^summary: //p' "$dir/cost.100000")
	echo "$small instructions in pieces of 64 bytes, $large in large ones"
	[ "$small" -lt $((20 * large)) ]
}

# A server that does not read makes us wait, not lose, and not spin.
back_pressure() {
	build_peer
	"$peer" stall "$cport" 20000 >"$dir/stall" &
	server=$!
	echo $server >>"$dir/pids"
	await listening_only "$cport"
	proxy MAXREQUESTS=50000 keepalive=0
	await grep stuck "$dir/stall"
	before=$(switches)
	sleep 1
	[ $(($(switches) - before)) -lt 20 ]
	fits_in 12288
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
	logged "resource: service@localhost/a: 0 open, 1 handed out, 1 answered, "
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

# ---- tests: workers that hang, drain or leave, on a scripted server ----

# Who has a request and is silent for `stall' seconds is pinged; after as many again
# he is set aside, and while there are others they are chosen.
who_hangs_is_set_aside() {
	scripted stall=1
	goes_to a 1 set
	joins b
	is_pinged a
	unlogged stalled
	is_pinged a
	logged "stalled: service@localhost/a: silent for [23] s, 1 open$"
	for i in 2 3 4 5 6 7; do
		goes_to b $i
		passes b $i
	done
	is_pinged a
	goes_to b 8
	passes b 8
	logged_times 1 stalled
	stop
	scripted stall=0
	goes_to a 1
	sleep 1.5
	news
	unsent "id='\(stall\|due\)"
}

# To those who say anything within `stall' nothing is sent, be a request never
# answered; nor to those who have none.
nobody_is_pinged_who_talks() {
	scripted stall=2
	goes_to a slow set
	joins b
	for i in 1 2 3 4 5 6 7 8; do
		deliver iq result service@localhost/a proxy.localhost/x@h/r "id='$i'/"
		sleep 0.5
		! find_stanza srv "^<iq type='get' id='due" || tell srv "$heard"
	done
	grep -q "id='due" "$dir/srv.out"
	unsent "id='stall'"
	unlogged stalled
}

# Who answers pings but not his requests stays.
who_answers_pings_stays() {
	scripted stall=1
	goes_to a 1 set
	for i in 1 2 3 4; do
		is_pinged a
		deliver iq error service@localhost/a proxy.localhost "id='stall'/"
	done
	unlogged "stalled\|dropped"
	fares a "1 open, 1 handed out, 0 answered, 0 retried away, 0 timed out, 0 ms, up"
}

# Who is set aside is pinged each `stall' seconds, and tried at every third time: with
# the next get, which others get as well if he is silent still; or with any request,
# if no get comes soon. Some answer requests, but no pings.
who_was_set_aside_is_tried() {
	scripted stall=1
	goes_to a 1 set
	joins b
	is_set_aside a
	is_pinged a
	is_pinged a
	goes_to b 2
	passes b 2
	is_pinged a
	goes_to b 3 set
	passes b 3
	goes_to a 4
	goes_to b 5
	passes b 5
	is_pinged a
	is_handed_to b 4
	passes b 4
	for i in 1 2 3 4; do
		goes_to b "6$i" set
		passes b "6$i"
		is_pinged a
	done
	goes_to b 7 set
	passes b 7
	is_pinged a
	goes_to a 8 set
	unlogged recovered
	passes a 8
	logged "recovered: service@localhost/a$"
	fares a "1 open, 3 handed out, 1 answered, 1 retried away, 0 timed out, [0-9]* ms, up"
}

# Any stanza from him brings him back, but no presence while a probe is out, which
# may be only his server's.
any_stanza_brings_back() {
	scripted stall=1
	goes_to a 1 set
	n=0
	for how in result error ping message presence; do
		is_set_aside a
		case $how in
		result | error) deliver iq $how service@localhost/a proxy.localhost/u@h/r "id='other'/" ;;
		ping) deliver iq result service@localhost/a proxy.localhost "id='stall'/" ;;
		message) deliver message chat service@localhost/a proxy.localhost ;;
		presence) shows a away ;;
		esac
		n=$((n + 1))
		logged_times $n "recovered: service@localhost/a$"
	done
	is_set_aside a
	probed
	shows a away
	news
	logged_times $n recovered
	fares a "1 open, .*, stalled"
	deliver iq get service@localhost/a proxy.localhost
	logged_times $((n + 1)) recovered
}

# If all are stalled they are used as if none were; who joins then gets what others
# had, if it is gets.
all_are_stalled() {
	scripted stall=1
	goes_to a 1 get
	goes_to a 2 set
	is_set_aside a
	goes_to a 3
	goes_to a 4 set
	is_pinged a
	unsent "<iq type='error' id='[1234]'"
	joins b
	goes_to b 5
	passes b 5
	is_pinged a
	is_handed_to b 1
	is_handed_to b 3
	passes b 1
	passes b 3
	unsent "id='[24]'.*localhost/b'"
	# two of them
	goes_to b 6 set
	is_set_aside b
	each_gets_a_set a b
}

# A get whose resource leaves is handed to another, with the same from, id and content,
# instead of being answered with an error.
gets_are_handed_on() {
	scripted
	content=" xml:lang='de' x:y='&amp;' xmlns:x='urn:x'><q xmlns='test' a='\"&apos;'>t &lt; ü<e/></q> </iq>"
	for id in " id=\"it's &amp; 1\"" " id=''" ""; do
		joins a
		from="from='room@proxy.localhost/u@h/%C3%BC%25'"
		tell srv "<iq type='get'$id from='u@h/ü%' to='room@proxy.localhost'$content"
		await has_written "<iq type='get'$id $from to='service@localhost/a'$content"
		joins b
		leaves a
		await has_written "<iq type='get'$id $from to='service@localhost/b'$content"
		tell srv "<iq type='result'$id from='service@localhost/b' to='room@proxy.localhost/u@h/ü%25'/>"
		await has_written "<iq type='result'$id from='room@proxy.localhost' to='u@h/ü%'/>"
		leaves b
	done
	unsent "type='error'.*unavailable"
	logged_times 3 "failed: 1 requests held by resources that left"
}

# They all are, however many, and however little room there is.
many_are_handed_on_at_once() {
	scripted OUTSIZE=550000
	awk -v x="$(bytes 400 x)" 'BEGIN {
		for (i = 0; i < 4000; i++)
			printf "<iq type=\"get\" id=\"%d\" from=\"u%d@h/r\" to=\"proxy.localhost\">%s</iq>", i, i % 1000, x
		print "<presence from=\"service@localhost/b\" to=\"proxy.localhost\"/>"
		print "<presence type=\"unavailable\" from=\"service@localhost/a\" to=\"proxy.localhost\"/>"
	}' >"$dir/srv.in"
	logged "failed: 4000 requests"
	await sh -c "[ \$(grep -o \"to='service@localhost/b'\" '$dir/srv.out' | wc -l) -ge 4000 ]"
	news
	sed "s|.*<iq type='get' id='\([0-9]*\)' from='proxy.localhost/u[0-9]*@h/r' to='service@localhost/b'>x\{400\}</iq>|\1|" "$dir/old" |
	    grep '^[0-9]*$' | sort -n >"$dir/handed"
	seq 0 3999 | cmp - "$dir/handed"
	unsent recipient-unavailable
}

# So is one whose resource has left without a word.
gets_of_the_swept_are_handed_on() {
	scripted patience=1
	goes_to a 1
	goes_to a 2 set
	joins b
	probed
	online b
	probe_is_over
	probe_is_read
	online b
	probe_is_over
	logged "left: service@localhost/a: 1 online"
	is_handed_to b 1
	has_failed recipient-unavailable 2
	passes b 1
}

# The first answer counts, a second never passes, from whomever; and an error only
# if it comes from the last that was given the request.
the_first_answer_counts() {
	scripted stall=1
	for i in 1 2 3 4 5; do
		goes_to a $i
	done
	joins b
	is_set_aside a
	for i in 1 2 3 4 5; do
		is_handed_to b $i
	done
	fares a "0 open, 5 handed out, 0 answered, 5 retried away, 0 timed out, 0 ms, stalled"
	passes a 1
	is_late b 1
	is_late b 1 error
	passes b 2
	is_late a 2
	is_late b 2
	is_late a 3 error
	passes b 3
	is_late a 4 error
	passes b 4 error
	is_late a 4
	is_late a 5 error
	leaves a
	is_late a 5 error
	passes b 5
	kill -USR1 "$proxypid"
	logged "counted: 5 requests, 0 untracked, 5 answers, 9 late, .* 0 open"
}

# What its server says of who has left comes after it was handed on.
a_late_bounce_is_dropped() {
	scripted
	goes_to a 1
	joins b
	leaves a
	is_handed_to b 1
	news
	deliver iq error service@localhost/a proxy.localhost/u@h/r "id='1'><error type='cancel'>
		<service-unavailable xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq"
	news
	[ -z "$news" ]
	passes b 1
}

# That it is not there its server may say before its presence does: another is asked.
a_bounce_asks_another() {
	scripted
	goes_to a 1
	goes_to a 2 set
	joins b
	for i in 1 2; do
		deliver iq error service@localhost/a proxy.localhost/u@h/r "id='$i'><error type='cancel'>
			<recipient-unavailable xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq"
	done
	is_handed_to b 1
	hear srv "<iq type='error' id='2' from='proxy.localhost' to='u@h/r'>"
	passes b 1
}

# It may have said so itself: nothing else changes for it, and where one is in charge the
# others are not asked.
who_bounces_is_not_set_aside() {
	scripted choice=STANDBY
	goes_to a 1
	joins b
	deliver iq error service@localhost/a proxy.localhost/u@h/r "id='1'><error type='cancel'>
		<recipient-unavailable xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq"
	hear srv "<iq type='error' id='1' from='proxy.localhost' to='u@h/r'>"
	goes_to a 2
	unlogged stalled
	unlogged "in charge: service@localhost/b"
}

# A set is never repeated: whose resource leaves gets the error, whose is stalled waits.
a_set_is_never_repeated() {
	scripted stall=1
	goes_to a 1 set
	goes_to a 2 set
	joins b
	is_set_aside a
	is_pinged a
	passes a 2
	leaves a
	has_failed recipient-unavailable 1
	is_late a 1
	goes_to b 3
	unsent "id='[12]'.*service@localhost/b"
}

# Its content must fit, with its addresses and id.
what_is_too_large_is_not_handed_on() {
	scripted REQUESTSIZE=200
	small=$(bytes 160 x)
	large=$(bytes 180 x)
	deliver iq get u@h/r proxy.localhost "id='1'>$small</iq"
	deliver iq get u@h/r proxy.localhost "id='2'>$large</iq"
	hear srv "id='2'" "to='service@localhost/a'>x*</iq>"
	joins b
	leaves a
	hear srv "id='1'" "to='service@localhost/b'>$small</iq>"
	has_failed recipient-unavailable 2
	unsent "id='2'.*localhost/b'"
}

# As often as `retry' says.
so_often_it_is_handed_on() {
	for n in 0 1 3; do
		scripted retry=$n
		goes_to a 1
		has=a
		for r in $(echo b c d e | cut -c "1-$((2 * n))"); do
			joins "$r"
			leaves "$has"
			is_handed_to "$r" 1
			has=$r
		done
		joins f
		leaves "$has"
		has_failed recipient-unavailable 1
		stop
	done
	# nobody else is online: the error at once
	scripted
	goes_to a 1
	leaves a
	has_failed recipient-unavailable 1
	joins b
	goes_to b 2
	unsent "id='1'.*localhost/b'"
}

# Who has it next has only what is left of its time.
the_first_time_counts() {
	scripted answertime=3
	goes_to a 1
	news
	sleep 1
	joins b
	leaves a
	is_handed_to b 1
	goes_to b 2
	is_due
	has_failed remote-server-timeout 1
	passes b 2
	logged "timed out: request of u@h/r to proxy.localhost at b, and"
	is_late b 1
	is_late a 1
	fares b "0 open, 2 handed out, 1 answered, 0 retried away, 1 timed out, [0-9]* ms, up"
}

# Who shows dnd gets nothing new while another is online, and keeps what he has; any
# other show, and priorities, mean nothing. If all drain, all are used.
who_shows_dnd_drains() {
	scripted
	goes_to a 1
	goes_to a 2 set
	joins b
	shows a dnd
	logged "draining: service@localhost/a$"
	for i in 3 4 5 6 7 8; do
		goes_to b $i
	done
	tell srv "<presence from='service@localhost/a' to='proxy.localhost'><status>soon</status><show>dnd</show><priority>9</priority></presence>"
	fares a "2 open, 2 handed out, 0 answered, .*, draining"
	passes a 1
	passes a 2
	fares a "0 open, 2 handed out, 2 answered, .*, draining"
	# a show of somebody else's says nothing
	tell srv "<presence from='service@localhost/a' to='proxy.localhost'><show xmlns='x'>chat</show><show>dnd</show></presence>"
	tell srv "<presence from='service@localhost/b' to='proxy.localhost'><show xmlns='x'>dnd</show></presence>"
	goes_to b 9
	unlogged "draining: service@localhost/b"
	unlogged "back: service@localhost/a"
	passes b 9
	leaves b
	for i in 3 4 5 6 7 8; do
		is_handed_to a $i
		passes a $i
	done
	goes_to a 9 set
	# who comes draining, too
	shows c dnd
	logged "joined: service@localhost/c: 2 online"
	logged "draining: service@localhost/c"
	each_gets_a_set a c
	shows c chat
	logged "back: service@localhost/c$"
	goes_to c 10
	passes c 10
	for show in away xa chat; do
		shows c $show
		goes_to c $show
		passes c $show
	done
	tell srv "<presence from='service@localhost/c' to='proxy.localhost'><priority>-9</priority></presence>"
	goes_to c 11
	leaves a
	logged_times 2 "draining: "
	logged_times 1 "back: "
}

# Those that drain are used before those that are stalled.
draining_is_better_than_stalled() {
	scripted stall=1
	goes_to a 1 set
	joins b
	is_set_aside a
	shows b dnd
	logged "draining: service@localhost/b"
	for i in 2 3 4 5 6; do
		goes_to b $i
		passes b $i
	done
}

# It speaks against a resource that it drains or is stalled, whatever else the choice
# looks at: who was served there, or how few requests it has.
it_speaks_against_every_choice() {
	for choice in STICKY LEASTBUSY; do
		scripted choice=$choice stall=1
		goes_to a 1
		passes a 1
		joins b
		shows a dnd
		goes_to b 2 set
		goes_to b 3 set
		shows a chat
		goes_to "$(echo $choice | tr SL ba | cut -c1)" 4 set
		shows b chat
		is_set_aside b
		deliver iq result service@localhost/a proxy.localhost/x@h/r "id='alive'/"
		goes_to a 5
		stop
	done
}

# What drains is not tried either.
what_drains_is_not_tried() {
	scripted stall=1
	goes_to a 1 set
	joins b
	shows a dnd
	is_set_aside a
	for i in 2 3 4 5 6 7 8; do
		is_pinged a
		goes_to b $i
		passes b $i
		goes_to b $i$i set
		passes b $i$i
	done
}

# With relay those who talk to it still do; others begin with another.
conversations_stay_while_it_drains() {
	scripted relay=1 stall=1
	hi="><body>hi</body></message"
	deliver message chat u@h/r proxy.localhost "id='1'$hi"
	hear srv "id='1'" "to='service@localhost/a'"
	joins b
	shows a dnd
	logged "draining: service@localhost/a"
	for i in 2 3 4 5; do
		deliver message chat u@h/other proxy.localhost "id='$i'$hi"
		hear srv "id='$i'" "to='service@localhost/a'"
		deliver message chat v$i@h/r proxy.localhost "id='v$i'$hi"
		hear srv "id='v$i'" "to='service@localhost/b'"
	done
	goes_to a 6 set
	# but not with one that hangs
	is_set_aside a
	deliver message chat u@h/r proxy.localhost "id='7'$hi"
	hear srv "id='7'" "to='service@localhost/b'"
	goes_to b 8
	passes b 8
}

# One who floods leaves half of the places to others, and is refused; none of five
# hundred others is. However long his ids are, and from how many resources he comes.
who_floods_leaves_half() {
	for n in 0 1000; do
		scripted stall=0
		x=$(bytes $n x)
		flood 1 3000 "${x}f"
		await grep -q "f1-3000'" "$dir/srv.out"
		logged "busy: 2048 requests are open, 2048 of x*\\(f1@h/r2049\\)\\?: refusing more"
		# answered, they are his again
		for i in 1 2 3; do
			passes a "${x}f1-$i" result "${x}f1@h/r$i"
		done
		goes_to a again set "${x}f1@h/r"
		flood 50 40 o # few, so that none of them shares both places with g
		flood 1 3000 "${x}g"
		await grep -q "g1-3000'" "$dir/srv.out"
		news
		for id in f o g; do
			echo "$id: $(grep -c "set' id='x*${id}[0-9]*-.*localhost/a'" "$dir/old")" \
			    "$(grep -c "error' id='x*$id.*resource-constraint" "$dir/old")"
		done | tee "$dir/counts"
		# 50 places are left when the others have theirs
		[ "$(tr '\n' ' ' <"$dir/counts")" = "f: 2048 952 o: 2000 0 g: 25 2975 " ]
		leaves a
		joins a
		flood 1 3000 "${x}f"
		news
		kill -USR1 "$proxypid"
		logged "counted: .* 2048 open"
		stop
		rm "$dir/old" "$log"
	done
}

# A resource that answers nothing gets half of the places at most.
a_resource_has_its_share() {
	scripted MAXREQUESTS=64 stall=0
	joins b
	news
	for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
		flood 10 1 "$i."
		await grep -q "id='$i\.10-1'" "$dir/srv.out"
		news
		echo "$news" | grep "id='$i\..*/b'" |
		    sed "s/.* id='\([^']*\)' from='\([^']*\)' to='\([^']*\)'.*/<iq type='result' id='\1' from='\3' to='\2'\/>/" >"$dir/answers"
		cat "$dir/answers" >"$dir/srv.in"
		news
	done
	unsent resource-constraint
	kill -USR1 "$proxypid"
	logged "resource: service@localhost/a: \(2[5-9]\|3[012]\) open"
	[ "$(grep -c "/a'" "$dir/old")" -le 33 ]
}

# With STICKY, who was served lately stays where he is, also when others join, for
# sticktime; then all that are online decide.
who_was_served_stays() {
	scripted choice=STICKY sticktime=2
	goes_to a 1
	joins b c d e f g h i
	for i in 2 3 4 5 6 7 8; do
		sleep 0.4
		goes_to a $i
	done
	# a chance of one in nine to the seventh; and with the next one, too
	leaves a
	deliver iq get u@h/r proxy.localhost "id='9'/"
	hear srv "id='9' from='proxy.localhost/u@h/r'"
	r=${heard#* to=\'service@localhost/}
	r=${r%%\'*}
	joins a j k l m n o
	goes_to "$r" 10
	stop
	scripted choice=STICKY MAXREQUESTS=100000
	online b c d e f g h i
	logged "joined: .*: 9 online"
	ask_for_many nine
	joins j
	ask_for_many ten
	# only some of those who share a place; else it would be a thousand
	join "$dir/nine" "$dir/ten" | awk '$2 != $3 { moved++ }
	    END { print moved + 0 " moved"; exit moved > 300 }'
	stop
	scripted choice=STICKY MAXREQUESTS=100000 sticktime=1
	online b c d e f g h i
	logged "joined: .*: 9 online"
	ask_for_many nine
	sleep 1.2
	joins j
	ask_for_many ten
	join "$dir/nine" "$dir/ten" | awk '$2 != $3 { moved++ }
	    END { print moved + 0 " moved"; exit moved < 750 || moved > 1250 }'
}

# With relay, messages, their errors and requests of one bare JID meet the same resource.
messages_and_requests_meet() {
	scripted relay=1
	online b c d e f
	logged "joined: .*: 6 online"
	for u in 1 2 3 4 5 6 7 8; do
		deliver message chat u$u@h/x proxy.localhost "id='m$u'><body>hi</body></message"
		hear srv "id='m$u'"
		r=${heard#* to=\'service@localhost/}
		r=${r%%\'*}
		echo "$r" >>"$dir/met"
		goes_to "$r" "g$u" get u$u@h/y
		goes_to "$r" "s$u" set u$u@h
		deliver message "" u$u@h/y room@proxy.localhost "id='n$u'><body>hi</body></message"
		hear srv "id='n$u'" "to='service@localhost/$r'"
		deliver message error u$u@h/z proxy.localhost "id='e$u'/"
		hear srv "id='e$u' from='proxy.localhost/u$u@h/z' to='service@localhost/$r'"
	done
	# all at one: a chance of one in 6 to the seventh
	[ "$(sort -u "$dir/met" | wc -l)" -gt 1 ]
}

# With STANDBY all goes to one, until it leaves, drains or is stalled; who joins or
# comes back changes nothing. Then the first by name of the others takes over.
one_is_in_charge() {
	scripted choice=STANDBY stall=1
	logged "in charge: service@localhost/a$"
	leaves a
	joins m
	logged_times 1 "in charge: service@localhost/m$"
	joins z b c a
	for i in 1 2 3 4; do
		goes_to m $i get "u$i@h/r"
		passes m $i result "u$i@h/r"
	done
	goes_to m 5
	leaves m
	logged_times 2 "in charge: service@localhost/a$"
	is_handed_to a 5
	passes a 5
	joins m
	goes_to a 6
	passes a 6
	shows a dnd
	logged_times 1 "in charge: service@localhost/b$"
	goes_to b 7
	passes b 7
	shows a chat
	goes_to b 8
	goes_to b 9 set
	is_set_aside b
	logged_times 3 "in charge: service@localhost/a$"
	is_handed_to a 8
	passes a 8
	# nor is it tried
	for i in 11 12 13 14 15; do
		is_pinged b
		goes_to a $i
		passes a $i
	done
	passes b 9
	logged "recovered: service@localhost/b"
	goes_to a 16
	logged_times 5 "in charge: "
}

# So do conversations.
conversations_are_in_one_place() {
	scripted choice=STANDBY relay=1
	joins b c
	hi="><body>hi</body></message"
	for u in 1 2 3 4 5 6; do
		deliver message chat u$u@h/r proxy.localhost "id='m$u'$hi"
		hear srv "id='m$u'" "to='service@localhost/a'"
		goes_to a "g$u" get u$u@h/r
	done
	shows a dnd
	for u in 1 2 3 4 5 6; do
		deliver message chat u$u@h/r proxy.localhost "id='n$u'$hi"
		hear srv "id='n$u'" "to='service@localhost/b'"
	done
}

# SIGUSR1 tells how each resource fares, and the mean time of its answers.
how_each_resource_fares() {
	scripted
	goes_to a 1
	sleep 1
	passes a 1
	fares a "0 open, 1 handed out, 1 answered, 0 retried away, 0 timed out, [1-9][0-9]\{3\} ms, up$"
	for i in 2 3 4 5; do
		goes_to a $i set
		passes a $i error
	done
	goes_to a 6
	shows a dnd
	logged "draining: service@localhost/a"
	fares a "1 open, 6 handed out, 5 answered, 0 retried away, 0 timed out, [2-9][0-9][0-9] ms, draining$"
	joins b
	fares b "0 open, 0 handed out, 0 answered, 0 retried away, 0 timed out, 0 ms, up$"
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
	sed -n 's/^static const [^=]* \([a-z][a-z]*\)[][]* *=.*/\1/p;s/^	\([A-Z]*\) *=.*/\1/p' \
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

# Let the simulated world run for so many seconds, from a seed on, in each of its
# three sizes at the same time; with 0 seconds that seed only, and tell it all.
simulate() {
	build_world "$1" "$2" "$3" || exit
	if [ "$4" = 0 ]; then
		"$world.$(($5 % 3))" 0 "$5" 3
		return
	fi
	echo "from seed $5"
	for seed in "$5" $(($5 + 1)) $(($5 + 2)); do
		"$world.$((seed % 3))" "$4" "$seed" 3 >"$world.out.$((seed % 3))" 2>&1 &
		pids="${pids-} $!"
	done
	rc=0
	for p in $pids; do
		wait "$p" || rc=1
	done
	pids=
	tail -n 60 "$world".out.? | cut -c1-1000
	return $rc
}

# Seeds that find slips which were planted in the program.
failed_once() {
	for seed in 3 7 15 19 21 27 42 51 52 65 69 76 88 93 97 99 110 138 144 153 200 282 360 417; do
		simulate world cc -O1 0 $seed >"$TESTDIR/failed" 2>&1 || {
			cat "$TESTDIR/failed"
			return 1
		}
		grep "^seed" "$TESTDIR/failed" | cut -c1-100
	done
}

# Lines of client_proxy.c that these seeds have never reached.
unreached() {
	build_world coverage clang "-O1 -fprofile-instr-generate -fcoverage-mapping" || exit
	for seed in "$2" $(($2 + 1)) $(($2 + 2)); do
		i=$((seed % 3))
		LLVM_PROFILE_FILE=$world.raw.$i "$world.$i" "$1" "$seed" 3
	done >"$world.out" 2>&1
	for i in 0 1 2; do
		llvm-profdata merge -sparse -o "$world.data.$i" "$world.raw.$i"
		llvm-cov show "$world.$i" -instr-profile="$world.data.$i" "$world/client_proxy.c"
	done | awk -F'|' '
	$1 + 0 > 0 {
		n = $1 + 0
		if ($2 ~ /[1-9]/)
			reached[n] = 1
		else if ($2 ~ /0/)
			missed[n] = $3
	}
	END {
		for (i = 1; i < 5000; i++)
			if (i in missed && !(i in reached))
				printf "%d:%s\n", i, missed[i]
	}'
}

# The same world with libFuzzer's bytes in place of the random numbers.
fuzz() {
	build_world fuzz clang "-O1 -DFUZZ -DINPROCESS -fsanitize=fuzzer,address,undefined" || exit
	for i in 0 1 2; do
		mkdir -p "$world.corpus.$i"
		(cd "$world.corpus.$i" && "$world.$i" -max_total_time=$((($1 + 2) / 3)) -max_len=4096 \
		    -timeout=600 -rss_limit_mb=4096 -print_final_stats=1 . >"$world.log" 2>&1) || {
			tail -n 80 "$world.log"
			for f in "$world.corpus.$i"/crash-* "$world.corpus.$i"/timeout-*; do
				[ ! -f "$f" ] || { echo "$f, as base64:"; openssl base64 -in "$f"; }
			done
			return 1
		}
		grep -e DONE -e stat::number "$world.log"
	done
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
		payload["unwell"] = payload["exchanges"] = "<query xmlns=\"http://jabber.org/protocol/disco#info\" node=\"a\"/>"
		payload["answers"] = "<query xmlns=\"jabber:iq:version\"><name>svc</name></query>"
		payload["texts"] = "<query xmlns=\"urn:x\">" text "</query>"
		payload["elements"] = "<query xmlns=\"urn:x\">" items "</query>"
		for (i = 0; i < n; i++) {
			user = "user" i * 7919 % 100003 "@localhost/Psi+" i % 97
			if (profile != "answers")
				print "<iq type=\"get\" id=\"x" i "\" from=\"" user \
				    "\" to=\"proxy.localhost\">" payload[profile] "</iq>"
			answers = answers "<iq type=\"result\" id=\"x" i \
			    "\" from=\"service@localhost/r" (profile == "unwell" ? 200 : 0) + i % 8 "\" to=\"proxy.localhost/" \
			    user "\">" payload[profile] "</iq>"
			if (i % 100 == 99) {
				print answers
				answers = ""
			}
		}
	}' | tr '"' "'"
}

# Instructions for some 2000 stanzas of a profile, as valgrind counts them: $cost,
# and $floor for expat alone. Of 1000 resources, 100 of which hang and 100 drain, what
# it takes to know them does not count.
count_instructions() {
	valgrind="valgrind -q --tool=callgrind --callgrind-out-file=$dir/cost"
	resources=8 known=0 begun=0
	[ "$1" != unwell ] || {
		resources=1000u
		configure stall=1
		# shellcheck disable=SC2086
		"$load" serve /dev/null 1 0 $resources "$cport" $valgrind "$bin" >"$dir/lost"
		known=$(sed -n 's/^summary: //p' "$dir/cost")
		# shellcheck disable=SC2086
		$valgrind "$load" parse /dev/null 1 131072 >"$dir/lost"
		begun=$(sed -n 's/^summary: //p' "$dir/cost")
	}
	profile "$1" 1000 | head -c 3000000 | sed 's/<\/iq>[^/]*$/<\/iq>/' >"$dir/in"
	n=$(grep -o '</iq>' "$dir/in" | wc -l)
	# shellcheck disable=SC2086 # a command and its options
	$valgrind "$load" parse "$dir/in" 1 131072 >"$dir/lost"
	floor=$(($(sed -n 's/^summary: //p' "$dir/cost") - begun))
	# shellcheck disable=SC2086
	"$load" serve "$dir/in" 1 "$n" $resources "$cport" $valgrind "$bin" >"$dir/lost"
	cost=$(($(sed -n 's/^summary: //p' "$dir/cost") - known))
	[ "$1" != unwell ] || configure
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
	for p in exchanges answers texts elements unwell; do
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
	for t in ${only:-$(tests | sed -n '/^tls_/p;/^nothing_else/,/^cut_connections/p
	    /^gets_are_h/p;/^many_are_h/p;/^the_first_answer/p;/^who_floods/p;/^how_each/p' | grep -v \
	    -e small_in_memory -e one_turn -e cost -e on_each_expat -e all_addresses \
	    -e comes_back -e backing_off)}; do
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
storm)
	place storm
	guard
	storm "${3-prosody}" "${2-300}"
	exit
	;;
simulate)
	[ "${2-}" != failed ] || { failed_once; exit; }
	simulate world cc -O1 "${2-60}" "${3-$(date +%s)}"
	exit
	;;
sanitize)
	simulate sanitize clang "-O1 -fsanitize=address,undefined -fno-sanitize-recover=all" \
	    "${2-60}" "${3-$(date +%s)}"
	exit
	;;
unreached) unreached "${2-20}" "${3-1}"; exit ;;
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
	# what is scripted is simulated with sanitizers
	for t in $(tests | sed -n '1,/^tls_under_load/p;/^memory_stays/,/^ugly_stanzas_on_e/p'); do
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
	    $(tests | grep ^tls_) nothing_else_is_rewritten resources_of_any_spelling \
	    relayed_as_the_table_says no_way_around_the_table messages_for_nobody \
	    own_ids_of_every_shape names_of_any_spelling_ask the_clients_requests_have_limits \
	    requests_of_who_leaves_are_answered a_full_table_sheds_load presence_errors \
	    gets_are_handed_on the_first_answer_counts one_is_in_charge \
	    silent_departures_are_found strangers_do_not_fill_the_log too_large full_table \
	    stray_answers_and_undecodable_addresses handshake_with_any_id refusals_are_logged \
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
