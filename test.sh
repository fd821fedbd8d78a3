#!/bin/sh
# client_proxy's specification: each sentence of the man page, and the test that
# proves it. See LICENSE file for copyright and license details.
#
#	./test.sh            all tests, many of them again with sanitizers, TLS, valgrind
#	./test.sh NAME...    these tests only, as the list names them
#	./test.sh list       the names
#	./test.sh coverage   sentences of the man page without a test, and the reverse
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
#	./test.sh newcomer [SUITE...]
#	                     README's lines on bare Debians, as root
#
# JOBS=N is how many tests run at the same time, else two for each processor. With
# SHARE=N, portable runs each test with every Nth variant only.
# Servers and clients run on loopback, in a throw-away directory, and never as
# root: started as root, everything runs as `nobody'.

# shellcheck disable=SC2154 # dir, c2s, cport and tport are set by place
set -u
LC_ALL=C
PATH=$PATH:/usr/sbin:/sbin
export LC_ALL PATH

if [ -z "${TESTDIR-}" ]; then
	cd "$(dirname "$0")" || exit 1
	TESTDIR=$(mktemp -d "${TMPDIR:-/tmp}/client_proxy.XXXXXX") || exit 1
	export TESTDIR
	trap 'rm -rf "$TESTDIR"' EXIT
	trap 'exit 1' HUP INT TERM
	mkdir "$TESTDIR/src" || exit 1
	cp Makefile client_proxy.c config.def.h client_proxy.1 test.sh LICENSE README \
	    "$TESTDIR/src" || exit 1
	user=
	if [ "$(id -u)" = 0 ] && [ "${1-}" != newcomer ]; then
		chown -R nobody "$TESTDIR"
		user="setpriv --reuid=nobody --regid=nogroup --clear-groups"
	fi
	cd "$TESTDIR/src" || exit 1
	HOME=$TESTDIR $user sh ./test.sh "$@"
	exit
fi

# ---- the specification: the tests, in the order of the man page ----
# What stands above a test in quotes is what it proves.

# "client_proxy is an external component for any XMPP server."
# "In prosody.cfg.lua:"
# "In ejabberd.yml, below listen:"
# "In router.xml, below local:"
a_week_on_prosody() { week prosody; }
a_week_on_ejabberd() { need ejabberdctl ejabberd; week ejabberd; }
a_week_on_jabberd2() { need jabberd2-router jabberd2; week jabberd2; }

# All that an operator sees in a week, in the shortest time: the first contact,
# joins and leaves, requests, silence, both sides' restarts.
week() {
	$1
	service a
	proxy keepalive=2
	logged online
	login user x
	ask user 1
	hear user "<iq" "type='error'" "id='1'" "<service-unavailable"
	accepts a
	served user 2 a
	service b
	logged "joined: service@localhost/b: 2 online"
	offline a
	served user 3 b room@proxy.localhost
	tell a "<presence/>"
	logged "joined: service@localhost/a: 2 online"
	sleep 5
	unlogged disconnected
	stop
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
	$1
	service a
	logged_times 2 "joined: service@localhost/a:"
	login user x
	served user 4 a
}

# "It owns one address, its domain, and hands each IQ request that is sent there to one of
# the clients that are online with an ordinary account, the target."
# "The answer goes back to the requester as if the component had given it."
# "The worker finds the requester's address behind the first slash of from."
# "Let the domain be proxy.domain.example and the target some-user@some-domain.example,
# with resources a and b."
the_exchange() {
	scripted
	{ example "The exchange" 1 && echo; } | ours | sed 's/some-user@some-/service@/' | tr '\n' ' ' |
	    sed 's/[a-z]* -> [a-z]*:/\n/g;s/$/\n/' | sed '/iq/!d;s/ *$//;s/  */ /g;s/>$/\/>/' >"$dir/four"
	{ read -r asked && read -r handed && read -r answered && read -r led; } <"$dir/four"
	tell srv "$asked"
	for want in "$handed" "$led"; do
		hear srv "id='1234'"
		[ "$(echo "$heard" | attributes)" = "$(echo "$want" | attributes)" ]
		tell srv "$answered"
	done
}

attributes() { sed 's/[ /]/\n/g' | sort; }

# "Each copy is called a worker and has a resource of the target to itself."
without_a_resource_it_is_no_worker() {
	scripted
	online ""
	deliver presence "" service@localhost proxy.localhost /
	works a 1
	logged "ignored: service@localhost/: invalid resource"
	logged_times 1 "joined:"
}

# Without an id it is the same as with an empty one, since a server may make one of the
# other.
# "An answer needs nothing but this address to find its way, so ..."
an_empty_id_is_none() {
	scripted
	goes_to a ""
	deliver iq result service@localhost/a proxy.localhost/u@h/r /
	hear srv "^<iq type='result' from='proxy.localhost' to='u@h/r'/>"
	fares a "0 open"
}

# "client_proxy learns from the target's presence which workers are online."
# "For that it sends a subscription request, which the target has to accept, see The
# subscription."
# "A worker came or went, and now n are online."
it_learns_who_is_online_from_presence() {
	scripted
	probed
	online a b c a b c
	logged "joined: service@localhost/c: 3 online"
	unavailable nobody
	leaves a
	logged "left: service@localhost/a: 2 online"
	deliver presence unavailable service@localhost proxy.localhost /
	logged "left: service@localhost, all.*: 0 online"
	logged_times 3 "joined: "
}

# "client_proxy runs in the foreground, writes one line per event to standard error and
# reconnects by itself when the connection is lost."
the_server_restarts() {
	prosody
	proxy
	services a
	kill "$serverpids"
	logged "left: .*: 0 online"
	logged disconnected
	await gone "$serverpids"
	logged "Connection refused"
	for n in 1 2; do
		# it may have joined more than once
		joined=$(grep -c "joined: .*: 1 online" "$log")
		prosody
		rm -f "$dir/a".*
		service a
		await sh -c "[ \"\$(grep -c 'joined: .*: 1 online' '$log')\" -gt $joined ]"
		[ $n = 2 ] || end "$serverpids" 9
		[ $n = 2 ] || logged_times 2 disconnected
	done
	login user x
	served user 1 a
}

# "The option -v prints name and version, here client_proxy-1.0."
options() {
	configure
	brief -v
	[ $rc = 0 ]
	[ "$(cat "$dir/out")" = "client_proxy-$(sed -n 's/^VERSION = //p' Makefile)" ]
	grep -q "here $(cat "$dir/out")\.\$" client_proxy.1
	rc=0
	# shellcheck disable=SC2086 # a command and its options, or nothing
	${WRAPPER-} "$bin" -v >/dev/full 2>&1 || rc=$?
	[ $rc = 1 ]
	for o in -h x '-v -v' '-x y'; do
		# shellcheck disable=SC2086 # words
		brief $o
		[ $rc = 1 ]
		grep -q "^usage: " "$dir/err"
	done
}

# "There % and each byte that is not printable ASCII are written %XX, in upper-case
# hexadecimal digits."
odd_requesters_are_answered() {
	prosody
	proxy
	services a
	i=0
	for r in 'שלום' 'مرحبا abc' '🙂' 'with space' "o&apos;clock" '100%' '%41' 'UPPER' \
	    '&quot;&lt;&amp;&gt;' 'a/b@c' "$(printf '%0900d' 0)"; do
		i=$((i + 1))
		login "user$i" "$r"
		ask "user$i" $i
		hear a "<iq" "id='$i'"
		answer a
		hear "user$i" "<iq" "type='result'" "id='$i'"
	done
}

# "There % and each byte that is not printable ASCII are written %XX, in ..."
every_printable_character_survives() {
	scripted
	all=$(awk 'BEGIN { for (i = 32; i < 127; i++) printf "%c", i }' |
	    sed "s/&/\\&amp;/g;s/</\\&lt;/g;s/'/\\&apos;/g")
	enc=$(printf %s "$all" | sed 's/%/%25/g')
	request 1 get "u@h/$all"
	reply 1 a result "u@h/$enc"
	wrote "<iq type='get' id='1' from='proxy.localhost/u@h/$enc' to='service@localhost/a'/><iq type='result' id='1' from='proxy.localhost' to='u@h/$all'/>"
}

# "There % and each byte that is not printable ASCII are written %XX, in ..."
bytes_that_are_not_ascii_are_encoded() {
	scripted
	request 1 get "u@h/é%🙂"
	hear srv "<iq type='get' id='1' from='proxy.localhost/u@h/%C3%A9%25%F0%9F%99%82'"
	reply 1 a result "u@h/%25%41%D7%A9%f0%9f%99%82"
	hear srv "<iq type='result' id='1' from='proxy.localhost' to='u@h/%Aש🙂'/>"
}

# "An answer needs nothing but this address to find its way, so one that comes after a
# restart of client_proxy is passed on as well."
the_proxy_restarts() {
	prosody
	proxy
	services a
	login user x
	for sig in TERM 9; do
		ask user $sig
		hear a "<iq" "id='$sig'"
		end "$proxypid" $sig
		proxy
		logged "joined: .*: 1 online"
		answer a
		hear user "<iq" "type='result'" "id='$sig'"
	done
}

# "The node of the address is kept: a request to room@proxy.domain.example comes from
# room@proxy.domain.example/user@some-domain.example/abc and is answered from
# room@proxy.domain.example."
a_node_answers_as_itself() {
	scripted
	request 1 get u@h/r room@proxy.localhost
	hear srv "<iq type='get' id='1' from='room@proxy.localhost/u@h/r' to='service@localhost/a'/>"
	deliver iq result service@localhost/a room@proxy.localhost/u@h/r
	hear srv "<iq type='result' id='1' from='room@proxy.localhost' to='u@h/r'/>"
}

# "Everything else in requests and answers passes unchanged."
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
	kept "" "><a b=\"''&amp;&lt;>&#13;&#10;&#9; \"/></iq>"
	kept "" "><a>&gt;&apos;&quot;&#x20AC;</a></iq>" "><a>>'\"€</a></iq>"
	kept "" "><a><![CDATA[<b>]]]]><![CDATA[>]]></a></iq>" "><a>&lt;b>]]&gt;</a></iq>"
	kept "" "><a b='€🙂ß'>€🙂ß</a></iq>"
	deep=$(bytes 6000 "<a>")$(bytes 8000 "</a>")
	kept "" ">$deep</iq>" ">$(echo "$deep" | sed 's|<a></a>|<a/>|')</iq>"
	kept "" ">$(bytes 22000 "<a b='c'/>")</iq>"
	(cat "$dir/srv.out" && echo "</stream:stream>") | xmlwf | grep . && return 1
	unlogged dropped
}

# A stanza in, the stanza out: everything but the addresses is as it was.
kept() {
	tell srv "<iq type='set' id='f'$1 from='u@h/r' to='proxy.localhost'$2"
	wrote "<iq type='set' id='f' from='proxy.localhost/u@h/r' to='service@localhost/a'$1${3-$2}"
}

# "Everything else in requests and answers passes unchanged."
prefixes_of_the_stream_are_declared_again() {
	decl="xmlns:s='urn:from-the-stream' xmlns:t='urn:t'"
	scripted
	kept "" "><s:a/></iq>" " $decl><s:a/></iq>"
	own="xmlns:s='urn:own'><s:a t:b=''/></iq>"
	kept "" " $own" " xmlns:t='urn:t' $own"
}

# A result is one whatever is in it.
# "Everything else in requests and answers passes unchanged."
a_result_may_hold_an_error() {
	scripted
	goes_to a 1
	joins b
	tell srv "$(bounced a 1 | sed "s/type='error'/type='result'/")"
	hear srv "^<iq type='result' id='1' from='proxy.localhost' to='u@h/r'><error "
}

# "Everything else in requests and answers passes unchanged."
byte_by_byte() {
	scripted
	program peer.py
	for i in 01 02 03 04 05 06 07 08 09 10 11 12 13 14 15 16 17 18 19 20; do
		printf %s "<iq type='get' id='b$i' from='u&amp;&apos;@h/ü' to='proxy.localhost'>
			<a b='&lt;ü>'>]]&gt;ü<![CDATA[<]]></a></iq>"
	done | /usr/bin/python3 "$TESTDIR/peer.py" drip >"$dir/srv.in"
	hear srv "<iq type='get' id='b20' from=\"proxy.localhost/u&amp;'@h/%C3%BC\".*<a b='&lt;ü>'>]]&gt;ü&lt;</a></iq>"
	[ "$(stanzas <"$dir/srv.out" | grep -c "<iq type='get' id='b")" = 20 ]
}

# "A stanza with a tag of more than 2048 bytes, or of nearly as many, is followed by about
# as much white space: servers with the expat of Debian 12 and 13 would otherwise hold it
# back until as many bytes more have come."
white_space_follows_large_tags() {
	scripted
	for n in 2000 5000; do
		tell srv "<iq type='get' id='$n' from='u@h/r' to='proxy.localhost'><q a='$(bytes $n x)'/></iq>"
		written "id='$n'"
	done
	await sh -c "tail -c 5100 '$dir/srv.out' | grep '</iq> \{5000,\}$'"
	grep -q "</iq> \{2000,\}<iq " "$dir/srv.out"
	! grep "x </iq> \|</iq> <" "$dir/srv.out"
}

# "A stanza with a tag of more than 2048 bytes, or of nearly as many, is followed by ..."
white_space_follows_what_is_handed_on() {
	scripted REQUESTSIZE=6000
	tell srv "<iq type='get' id='1' from='u@h/r' to='proxy.localhost'><q a='$(bytes 3000 x)'/></iq>"
	written "id='1'"
	joins b
	leaves a
	written "id='1' .*service@localhost/b"
	goes_to b 2
	[ "$(grep -o "</iq> \{3000,\}" "$dir/srv.out" | wc -l)" = 2 ]
}

# "A stanza with a tag of more than 2048 bytes, or of nearly as many, is followed by ..."
no_white_space_follows_small_tags() {
	scripted
	tell srv "<iq type='get' id='1' from='u@h/r' to='proxy.localhost'><q a='$(bytes 1500 x)'/></iq>"
	written "id='1'"
	news
	! grep "</iq> " "$dir/srv.out"
}

# "A stanza with a tag of more than 2048 bytes, or of nearly as many, is followed by ..."
no_white_space_follows_long_texts() {
	scripted REQUESTSIZE=8192
	tell srv "<iq type='get' id='1' from='u@h/r' to='proxy.localhost'><q>$(bytes 5000 x)</q></iq>"
	written "id='1'"
	joins b
	leaves a
	written "id='1' .*service@localhost/b"
	news
	! grep "</iq> " "$dir/srv.out"
}

# "A stanza with a tag of more than 2048 bytes, or of nearly as many, is followed by ..."
split_anywhere_on_each_expat() {
	split_anywhere
	need apt-get apt
	for v in $(apt-cache madison libexpat1 | awk '{ print $3 }'); do
		(cd "$dir" && apt-get download "libexpat1=$v" && dpkg -x "libexpat1_$v"_*.deb "expat.$v") || continue
		lib=$(find "$dir/expat.$v" -name 'libexpat.so.1' -printf %h)
		stop
		LD_LIBRARY_PATH=$lib split_anywhere
		grep "$lib" "/proc/$proxypid/maps" >>"$dir/maps"
	done
}

# A stanza comes in two pieces, cut behind each of its bytes in turn.
split_anywhere() {
	scripted
	s="<iq type='get' id='s' from='u@h/r' to='proxy.localhost'><a b='c'>d</a></iq>"
	i=1
	while [ $i -lt ${#s} ]; do
		tell srv "$(printf %s "$s" | head -c $i)"
		sleep 0.01
		tell srv "$(printf %s "$s" | tail -c $((${#s} - i)))"
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

# "Every request is answered once."
a_crash_storm() { storm prosody 30; }

# "If its worker goes offline or hangs, a get is handed to another worker, see retry."
gets_are_handed_on() {
	scripted
	content=" xml:lang='de' x:y='&amp;' xmlns:x='urn:x'><q xmlns='test' a='\"&apos;'>t &lt; ü<e/></q> </iq>"
	from="from='room@proxy.localhost/u@h/%C3%BC%25'"
	for id in " id=\"it's &amp; 1\"" " id=''" ""; do
		tell srv "<iq type='get'$id from='u@h/ü%' to='room@proxy.localhost'$content"
		wrote "<iq type='get'$id $from to='service@localhost/a'$content"
		joins b
		leaves a
		wrote "<iq type='get'$id $from to='service@localhost/b'$content"
		tell srv "<iq type='result'$id from='service@localhost/b' to='room@proxy.localhost/u@h/ü%25'/>"
		wrote "<iq type='result'$id from='room@proxy.localhost' to='u@h/ü%'/>"
		joins a
		leaves b
	done
	unsent "type='error'.*unavailable"
}

# "A request that is not handed on is answered with an error when its worker goes offline
# or answertime is over; what a worker still says about it is dropped."
# "Their requesters got an error, unless they were handed on, see retry, or are untracked."
# "A request whose worker has gone offline, if it is not handed to another."
requests_of_who_leaves_fail_if_nobody_else_can_have_them() {
	scripted retry=0
	request 1
	request 2
	deliver iq get u@h/r room@proxy.localhost "id='it&apos;s &amp; 3'/"
	passes a 2
	news
	leaves a
	logged "failed: 2 requests"
	comes "$(error wait recipient-unavailable 1
		error wait recipient-unavailable 3 room@proxy.localhost | sed "s/'3'/\"it's \&amp; 3\"/")"
	all "is_late a 1" error result
	passes a 4
	counted ".* 2 late.* 2 recipient-unavailable.* 0 online, 0 open"
}

# "A request that is not handed on is answered with an error when its worker goes ..."
who_leaves_takes_only_his_own_requests_along() {
	scripted retry=0 choice=LEASTBUSY b c
	for i in 1 2 3 4 5 6; do
		request $i set
	done
	leaves a
	shows c away
	for r in b c; do
		comes_times 2 "recipient-unavailable"
		unavailable $r
	done
	comes_times 2 "recipient-unavailable"
	counted ".* 6 recipient-unavailable.* 0 online, 0 open"
}

# "A request that is not handed on is answered with an error when its worker goes ..."
# "A stanza that nothing can be done with, such as an answer that nobody has asked for."
a_late_answer_is_dropped() {
	scripted answertime=1
	goes_to a 1
	is_due
	is_due
	has_failed remote-server-timeout 1
	is_late a 1
	is_late a 1 error
	counted "1 requests, .* 2 late,"
}

# "When the connection to the server is lost, all requests are forgotten: those that are
# open get no error, and answers to those that have got one pass."
requests_do_not_survive_the_connection() {
	scripted answertime=2
	goes_to a open set
	reconnects
	joins b
	works b 1
	is_due
	passes a open
	unsent "type='error'"
	counted "2 requests, .* 0 late.* 0 open"
}

# "A request whose addresses and id are longer than REQUESTSIZE gets no error, ..."
# "A request whose addresses and id alone are longer is handed out, counted as open and
# its answer passed on, but it gets no error if none comes."
# "Such requests are counted, and the first is logged."
# "See REQUESTSIZE."
# "A second answer, ... may pass ... at once if the addresses and id of the request are
# longer than REQUESTSIZE."
what_is_too_long_to_remember_gets_no_error() {
	scripted REQUESTSIZE=100
	x=$(bytes 100 x)
	for i in 1 2 3; do
		goes_to a "$x$i" set
	done
	passes a "${x}1"
	passes a "${x}1"
	goes_to a short set
	counted "4 requests, 3 untracked, 2 answers.* 3 open"
	news
	leaves a
	comes "$(error wait recipient-unavailable short)"
	logged_times 1 "untracked: request from u@h/r: "
	counted ".* 0 open"
}

# It is over once its worker has left: what the server says of it in the same read passes.
# "A request whose addresses and id alone are longer is handed out, counted as open and
# its answer passed on, but it gets no error if none comes."
what_is_too_long_to_remember_gets_its_servers_error() {
	scripted REQUESTSIZE=100
	x=$(bytes 100 x)
	goes_to a "$x" set
	tell srv "$(gone_too a)$(bounced a "$x" service-unavailable)"
	hear srv "<iq type='error' id='$x' .*<service-unavailable"
	counted ".* 0 open"
}

# "A request whose addresses and id are longer than REQUESTSIZE gets no error, ..."
what_is_too_long_to_remember_times_out_unseen() {
	scripted REQUESTSIZE=100 answertime=1
	goes_to a "$(bytes 100 x)" set
	news
	is_due
	is_due
	logged "timed out: request from (untracked) to (untracked) at a, and"
	counted ".* 0 open"
	comes ""
}

# "..., nor does one whose error would be larger than MAXSTANZA."
no_error_is_larger_than_a_stanza() {
	scripted
	leaves a
	news
	request "$(bytes 524150 x)"
	comes ""
	logged "dropped: error service-unavailable to u@h/r: too large"
	counted ".* 1 dropped,"
}

# What is missing is not taken for what never was there.
# "..., nor does one whose error would be larger than MAXSTANZA."
what_does_not_fit_is_not_half_read() {
	scripted MAXSTANZA=5000
	goes_to a ''
	news
	to="to='proxy.localhost'"
	tell srv "<iq id='$(bytes 4985 i)' type='get' from='u@h/r' $to/>"
	tell srv "<iq type='result' from='service@localhost/a' $to id='$(bytes 5000 i)'/>"
	tell srv "<presence from='service@localhost/b' $to id='$(bytes 4950 i)' type='unavailable'/>"
	logged_times 3 "dropped: .*: its attributes are too large"
	unlogged "joined: service@localhost/b"
	comes ""
	passes a ''
}

# "A second answer, or one to a request that has got an error, may pass once MAXREQUESTS
# later requests have been answered, and at once if the addresses and id of the request
# are longer than REQUESTSIZE."
# "At least as many that have been answered are remembered, so that second answers are
# dropped."
a_failed_request_is_forgotten_after_as_many_others() {
	scripted MAXREQUESTS=64 stall=0
	goes_to a 1 set
	goes_to a 2 set
	leaves a
	for n in 1 2; do
		joins b
		flood 31 1 n$n.
		leaves b
		is_late a 1
	done
	joins a
	exchanges 4000 o%d
	passes a 2
}

# Their ids may be those of our own pings.
# "Every request is answered once."
requests_have_any_id() {
	scripted
	all "works a" stall ping due ask
}

# As when the server of a worker that has answered says that it has gone.
# "Every request is answered once."
what_follows_an_answer_is_dropped() {
	scripted
	goes_to a 1
	goes_to a 2 set
	passes a 1
	passes a 2 error
	is_late a 1 error
	is_late a 2
	counted "2 requests, 0 untracked, 2 answers, 2 late.* 0 open"
}

# "A second answer, ..., may pass once MAXREQUESTS later requests have been answered, ..."
an_answered_request_is_forgotten_after_as_many_others() {
	scripted MAXREQUESTS=64 stall=0
	goes_to a 1
	goes_to a 2
	passes a 1
	passes a 2
	exchanges 62 n%d
	is_late a 1
	exchanges 4000 o%d
	passes a 1
}

# Neither ids that are used again push out others, nor what is too long to remember.
# "At least as many that have been answered are remembered, so that second answers are
# dropped."
answered_requests_are_remembered_once() {
	scripted REQUESTSIZE=64
	exchanges 800 v%d
	exchanges 1600 f%d 100
	exchanges 1600 "$(bytes 70 x)%d" 100
	awk 'BEGIN {
		for (i = 1; i <= 800; i++)
			printf "<iq type=\"result\" id=\"v%d\" from=\"service@localhost/a\" to=\"proxy.localhost/u@h/r\"/>", i
	}' >"$dir/srv.in"
	counted ".* 800 late"
}

# "Every request is answered once."
alike_requests_get_an_answer_each() {
	scripted choice=LEASTBUSY b
	for _ in 1 2 3 4; do
		request 1
	done
	for r in b a; do
		fares $r "2 open"
		passes $r 1
		fares $r "1 open"
	done
	news
	deliver presence unavailable service@localhost proxy.localhost /
	comes_times 2 recipient-unavailable
}

# "A request while no worker is online."
nobody_is_online() {
	scripted relay=1
	leaves a
	news
	request 1
	comes "$(error cancel service-unavailable 1)"
}

# "A request, or with relay a message, to an address of the component with a resource."
nobody_is_at_a_resource_of_the_component() {
	scripted relay=1
	news
	request 1 get u@h/r room@proxy.localhost/there
	message 2 u@h/r proxy.localhost/there
	comes "$(error cancel service-unavailable 1 room@proxy.localhost/there
		error cancel service-unavailable 2 proxy.localhost/there u@h/r message)"
}

# "A message, or a request from the target; ..."
messages_and_the_targets_requests_are_refused() {
	scripted
	news
	message 1 u@h/r
	request 2 get service@localhost/a
	own 3 a
	comes "$(error cancel feature-not-implemented 1 proxy.localhost u@h/r message
		error cancel feature-not-implemented 2 proxy.localhost service@localhost/a
		error cancel feature-not-implemented 3 proxy.localhost/u@h/r service@localhost/a)"
}

# Its id does not make it an answer to a ping of ours.
# "A message, or a request from the target; ..."
the_targets_request_may_have_any_id() {
	scripted
	own stall a proxy.localhost
	hear srv "^$(error cancel feature-not-implemented stall proxy.localhost service@localhost/a)"
}

# "A message, or a request from the target; with relay only those from the target to an
# address without a resource."
the_targets_client_reaches_neither_itself_nor_us() {
	scripted relay=1
	news
	for y in service@localhost/a service@localhost/b service@localhost proxy.localhost room@proxy.localhost/victim@h %zz; do
		for type in chat error; do
			deliver message $type service@localhost/a "proxy.localhost/$y"
		done
		for type in get result; do
			deliver iq $type service@localhost/a "proxy.localhost/$y"
		done
		deliver presence "" service@localhost/a "proxy.localhost/$y" /
	done
	comes_times 12 "^<\(iq\|message\) type='error' id='1' from='proxy.localhost/[^']*' to='service@localhost/a'><error type='cancel'><service-unavailable "
	[ "$(echo "$news" | wc -l)" = 12 ]
	message 1 service@localhost/a
	request 1 get service@localhost/a
	comes "$(error cancel feature-not-implemented 1 proxy.localhost service@localhost/a message
		error cancel feature-not-implemented 1 proxy.localhost service@localhost/a)"
}

# "A request or message from an address that is longer than 1023 bytes once encoded."
addresses_that_are_too_long() {
	scripted relay=1
	news
	fits=u@h/$(bytes 1019 x)
	goes_to a 1 get "$fits"
	news
	request 2 get "${fits}x"
	message 3 "u@h/$(bytes 340 é)x"
	message 4 "${fits}x" proxy.localhost "" error
	comes "$(error modify not-acceptable 2 proxy.localhost "${fits}x"
		error modify not-acceptable 3 proxy.localhost "u@h/$(bytes 340 é)x" message)"
}

# "With relay, a message while no worker is online."
messages_while_nobody_is_online() {
	scripted relay=1
	leaves a
	for m in "<body>hi</body>" "<body>hi</body>$composing" "<x xmlns='jabber:x:conference'/>" "" "<received xmlns='x'/>"; do
		news
		message 1 u@h/r room@proxy.localhost "$m"
		comes "$(error wait recipient-unavailable 1 room@proxy.localhost u@h/r message)"
	done
}

composing="<composing xmlns='http://jabber.org/protocol/chatstates'/>"

# "A request that was not answered within answertime."
the_clients_requests_get_an_answer() {
	scripted relay=1 answertime=2
	own 1 a
	joins b
	leaves b
	is_due
	is_due
	hear srv "^$(error wait remote-server-timeout 1 proxy.localhost/u@h/r service@localhost/a)"
	logged "timed out: request from service@localhost/a to proxy.localhost/u@h/r, and"
	news
	own_reply a/1
	comes ""
	counted ".* 1 late.* 0 open"
}

# "A request or message that is larger than MAXSTANZA."
# "A larger one is refused with policy-violation and the stream goes on."
what_is_too_large_is_refused() {
	scripted relay=1
	for part in x "<$(bytes 100 a)/>" "&lt;" "<a/>"; do
		large 700000 "iq type='set' id='1' from='u@h/r' to='proxy.localhost'" "<q>" "</q>" "$part" |
		    sed 's/<a*\(<\/q\)/\1/;s/&[lt]*</</;s/<a*\/<\/q/<\/q/' >"$dir/srv.in"
		hear srv "$(error modify policy-violation 1)"
		goes_to a 2
	done
	large 600000 "message id='3' from='u@h/r' to='proxy.localhost'" >"$dir/srv.in"
	hear srv "$(error modify policy-violation 3 proxy.localhost u@h/r message)"
	{ printf "<iq from='u@h/r' big='"; bytes 600000 x; printf "' type='get' id='4' to='proxy.localhost'/>"; } >"$dir/srv.in"
	hear srv "$(error modify policy-violation 4)"
	large 524000 "iq type='set' id='fits' from='u@h/r' to='proxy.localhost'" >"$dir/srv.in"
	hear srv "<iq type='set' id='fits' .*to='service@localhost/a'"
	unlogged disconnected
}

# "Where the server's limit for components is lower, so must this be: it is
# component_stanza_size_limit in Prosody, or else s2s_stanza_size_limit, and
# in ejabberd 2000 less than max_stanza_size of the listener: ejabberd counts with a stanza
# whatever it reads together with its end."
# "Prosody's not-well-formed and ejabberd's policy-violation mean that a stanza was above
# the server's limit, see MAXSTANZA."
below_the_limit_of_prosody() {
	global="s2s_stanza_size_limit = 100000"
	prosody
	below_the_limit not-well-formed 100000
}
below_the_limit_of_ejabberd() {
	need ejabberdctl ejabberd
	more="  max_stanza_size: 100000"
	ejabberd
	below_the_limit policy-violation 98000
}

# A request of 150000 bytes makes the server end the stream for this reason, but not with
# this MAXSTANZA, nor do those that it lets pass, with others behind them.
below_the_limit() {
	large="<iq type='get' id='1' to='proxy.localhost'><q xmlns='t'>$(bytes 150000 x)</q></iq>"
	proxy
	services a
	login user x
	tell user "$large"
	logged "disconnected: .*$1"
	stop
	proxy MAXSTANZA="$2"
	logged "joined: service@localhost/a: 1 online"
	for i in $(seq 20); do
		printf %s "<iq type='get' id='l$i' to='proxy.localhost'><q xmlns='t'>$(bytes $(($2 - 250)) x)</q></iq>"
		printf %s "$(for j in $(seq 20); do echo "<iq type='get' id='s$i.$j' to='proxy.localhost'><q xmlns='t'/></iq>"; done)"
	done >"$dir/user.in"
	hear a "<iq" "id='l20'"
	hear a "<iq" "id='s20.20'"
	tell user "$large"
	hear user "<iq" "type='error'" "id='1'" "<policy-violation"
	served user 2 a
	unlogged disconnected
}

# "A request or message that is larger than MAXSTANZA."
# "Bytes of a stanza, as written to the server, with the white space behind it."
so_many_bytes_and_no_more() {
	scripted MAXSTANZA=5000
	head="<iq type='set' id='1' from='proxy.localhost/u@h/r' to='service@localhost/a'>"
	for more in 0 1; do
		large $((5000 - ${#head} - 5 + more)) "iq type='set' id='$more' from='u@h/r' to='proxy.localhost'" >"$dir/srv.in"
	done
	hear srv "<iq type='set' id='0' .*x</iq>$"
	hear srv "$(error modify policy-violation 1)"
}

# Prosody's expat holds a large tag until as much again has come, and what follows is
# held with it: without the space it would be too much for Prosody together.
# "Bytes of a stanza, as written to the server, with the white space behind it."
# "A larger one is refused with policy-violation and the stream goes on."
the_white_space_counts() {
	prosody
	proxy
	services a
	login user x
	tell user "<iq type='get' id='1' to='proxy.localhost'><w><q><![CDATA[$(bytes 88000 '&')]]></q><q a='$(bytes 80000 y)'/></w></iq>$(bytes 90000 ' ')"
	hear user "<iq" "id='1'" "<policy-violation "
	served user 2 a
	unlogged disconnected
}

# "The requester also gets it in place of an answer that is too large."
the_requester_is_told_of_an_answer_that_is_too_large() {
	scripted
	goes_to a 1
	large 600000 "iq type='result' from='service@localhost/a' to='proxy.localhost/u@h/r' id='1'" >"$dir/srv.in"
	hear srv "$(error modify policy-violation 1)"
	counted "1 requests.* 0 open"
}

# "An IQ of an unknown type."
iqs_of_no_known_type() {
	scripted
	news
	request 1 bogus
	deliver iq '' u@h/r room@proxy.localhost/x "id=''/"
	deliver iq GET service@localhost/a proxy.localhost /
	comes "$(error modify bad-request 1
		error modify bad-request "" room@proxy.localhost/x
		error modify bad-request "" proxy.localhost service@localhost/a | sed "s/ id=''//")"
}

# "Anybody but the target who asks for presence is told unsubscribed."
strangers_who_ask_for_presence_are_told_unsubscribed() {
	scripted
	deliver presence subscribe x@localhost proxy.localhost /
	hear srv "<presence type='unsubscribed' from='proxy.localhost' to='x@localhost'/>"
	deliver presence probe x@localhost room@proxy.localhost /
	hear srv "<presence type='unsubscribed' from='room@proxy.localhost' to='x@localhost'/>"
}

# "The target is shown the component online if it asks."
the_target_may_see_the_proxy() {
	scripted
	deliver presence subscribe service@localhost proxy.localhost /
	hear srv "<presence type='subscribed' from='proxy.localhost' to='service@localhost'/>"
	hear srv "<presence from='proxy.localhost' to='service@localhost'/>"
	deliver presence probe service@localhost/a proxy.localhost /
	hear srv "<presence from='proxy.localhost' to='service@localhost/a'/>"
}

# "If it requests a subscription before it has accepted the component's own request, or
# after a probe that nobody has answered, the component asks again within a second, unless
# a probe is out."
the_target_subscribes_and_is_asked_again() {
	scripted
	deliver presence unsubscribed service@localhost proxy.localhost /
	logged "not subscribed"
	begun=$(milliseconds)
	deliver presence subscribe service@localhost proxy.localhost /
	hear srv "<presence type='subscribe' id='[^']*' from='proxy.localhost' to='service@localhost'/>"
	[ $(($(milliseconds) - begun)) -lt 2500 ]
}

# As when each worker does so at its start, and none accepts.
# "Until the request is accepted, its pauses then begin anew with askmin."
many_of_the_target_subscribe() {
	scripted askmin=1 askmax=600
	deliver presence unsubscribed service@localhost proxy.localhost /
	for _ in 1 2 3 4 5 6; do
		deliver presence subscribe service@localhost proxy.localhost /
		hear srv "<presence type='subscribe' "
	done
	hear srv "<presence type='subscribe' "
}

# Its roster may have been lost: nobody has answered the probe.
# "If it requests a subscription before it has accepted the component's own request, or
# after a probe that nobody has answered, the component asks again within a second, unless
# a probe is out."
the_target_subscribes_after_an_unanswered_probe() {
	scripted patience=3
	probed
	is_due
	hear srv "<presence type='subscribe'"
	deliver presence subscribe service@localhost proxy.localhost /
	hear srv "<presence type='subscribed'"
	begun=$(milliseconds)
	hear srv "<presence type='subscribe' "
	[ $(($(milliseconds) - begun)) -lt 2500 ]
	# and not again while a probe is out, even if the server has not read it
	deliver presence subscribed service@localhost proxy.localhost /
	hear srv "<presence type='probe' "
	deliver presence subscribe service@localhost proxy.localhost /
	sleep 1
	is_due
	deliver presence subscribe service@localhost proxy.localhost /
	sleep 1
	news
	[ "$(grep -c "<presence type='subscribe' " "$dir/old")" = 3 ]
}

# "Any other presence that is not from the target is ignored and logged."
# "Presence from somebody else."
# "If it is your worker's, the setting target is not its address."
other_presence_of_strangers_is_ignored() {
	scripted
	news
	for f in x@localhost/a service@localhostx/a xservice@localhost/b service@localhos/c service@other/d service/e localhost/f; do
		for t in '' unavailable subscribed unsubscribed unsubscribe error; do
			deliver presence "$t" "$f" proxy.localhost /
		done
	done
	logged "ignored: presence (no type) from x@localhost/a: the target is service@localhost"
	comes ""
	works a 1
	logged_times 1 "joined:\|left:"
}

# "A message of type error or headline that cannot be passed on is dropped."
nothing_is_said_to_errors_and_headlines() {
	scripted
	news
	message 1 u@h/r proxy.localhost "" error
	message 2 u@h/r proxy.localhost "" headline
	comes ""
}

# "Except as described below, an answer that is not from a resource of the target, or is
# to an address that encodes no requester, is dropped and logged."
answers_from_or_to_nobody_are_dropped() {
	scripted
	news
	for from in x@localhost/a service@localhost service@localhostx/a localhost; do
		deliver iq result $from proxy.localhost/u@h/r
		logged "dropped: iq result from $from to proxy.localhost/u@h/r: nobody asked for it"
	done
	deliver iq result service@localhost/a proxy.localhost/
	logged "dropped: iq result from service@localhost/a to proxy.localhost/: no sender, or not addressed to us"
	for a in '' /% /%4 /%zz /%00 /%0A /%01 /%FF /%C0%AF /%ED%A0%80 /%EF%BF%BE /%F4%90%80%80 /%C3 /a%E2%82 /%7; do
		deliver iq result service@localhost/a "proxy.localhost$a"
		logged "dropped: iq result from service@localhost/a to proxy.localhost$a: no requester in the address"
	done
	comes ""
}

# It is no worker's answer to a ping of ours.
# "Except as described below, an answer that is not from a resource of the target, ..."
a_strangers_answer_may_have_any_id() {
	scripted
	own_reply stall
	logged "dropped: iq result from u@h/r to proxy.localhost: nobody asked for it"
}

# "With the setting relay, a bot that chats, offers commands and queries its users'
# clients can stand behind the address."
users_chat_on_prosody() { talk chat prosody; }
users_chat_on_ejabberd() { need ejabberdctl ejabberd; talk chat ejabberd; }

# Its id looks like that of an answer.
# "All messages and requests from one bare JID go to one worker, see sticktime; ..."
a_message_may_have_any_id() {
	scripted relay=1
	message a/1 u@h/r
	hear srv "^<message type='chat' id='a/1' from='proxy.localhost/u@h/r' to='service@localhost/a'"
}

# "With the setting relay, a bot that chats, offers commands and queries its ..."
workers_ask_questions() { talk questions prosody; }

# "Let P be any address of the component without a resource, such as proxy.domain.example
# or node@proxy.domain.example; T/r a worker; F anybody else; and P/F the address of the
# component that encodes F."
# "The first two lines are the exchange above, the others come with relay; everything but
# the addresses and the id passes unchanged."
# "get or set from F to P from P/F to T/r"
# "result or error from T/r to P/F from P to F"
# "message from F to P from P/F to T/r"
# "message from T/r to P/F from P to F"
# "get or set from T/r to P/F, id x from P to F, id r/x"
# "result or error from F to P, id r/x from P/F to T/r, id x"
relayed_as_the_table_says() {
	scripted relay=1
	a=service@localhost/a
	for at in proxy.localhost room@proxy.localhost; do
		news
		message 1 u@h/r $at "<body>x</body>"
		message 2 u@h $at "<body/>" normal
		message 3 u@h/r $at "<e/>" error
		message 4 $a $at/u@h/r "<body/>"
		message 5 $a $at/u@h/%C3%A9 "<e/>" error
		deliver iq get $a $at/u@h/r "id='6'/"
		own_reply a/6 u@h/r result $at
		deliver iq set $a $at/u@h/%C3%A9 "id='7'/"
		own_reply a/7 u@h/é error $at
		request 8 get u@h/r $at
		deliver iq result $a $at/u@h/r "id='8'/"
		comes "<message type='chat' id='1' from='$at/u@h/r' to='$a'><body>x</body></message>
<message type='normal' id='2' from='$at/u@h' to='$a'><body/></message>
<message type='error' id='3' from='$at/u@h/r' to='$a'><e/></message>
<message type='chat' id='4' from='$at' to='u@h/r'><body/></message>
<message type='error' id='5' from='$at' to='u@h/é'><e/></message>
<iq type='get' id='a/6' from='$at' to='u@h/r'/>
<iq type='result' id='6' from='$at/u@h/r' to='$a'/>
<iq type='set' id='a/7' from='$at' to='u@h/é'/>
<iq type='error' id='7' from='$at/u@h/%C3%A9' to='$a'/>
<iq type='get' id='8' from='$at/u@h/r' to='$a'/>
<iq type='result' id='8' from='$at' to='u@h/r'/>"
	done
	unlogged dropped
	counted "6 requests, 0 untracked, 6 answers, 0 late, 10 messages.* 0 open"
}

# "Anything else is answered with an error or dropped, as above."
# "The target alone can reach others through the component, and they can reach nobody but
# the target."
no_way_around_the_table() {
	scripted relay=1
	news
	strangers="u@h/r service@localhostx/a service@localhost.evil/a xservice@localhost/a localhost"
	for y in victim@h/r service@localhost service@localhost/ service@localhost/a service@localhostx/a \
	    service@localhost.evil/a proxy.localhost/victim@h %zz victim@h%2Fr victim@h%00/r; do
		for from in $strangers; do
			for type in chat error groupchat; do
				deliver message $type "$from" "proxy.localhost/$y"
			done
			for type in get set result error; do
				deliver iq $type "$from" "proxy.localhost/$y"
			done
			deliver presence "" "$from" "proxy.localhost/$y" /
		done
	done
	# all that came out are errors to the sender
	comes_times 200 "^<\(iq\|message\) type='error' id='1' from='proxy.localhost/[^']*' to='\($(echo "$strangers" | sed 's/ /\\|/g')\)'><error type='cancel'><service-unavailable "
	[ "$(echo "$news" | wc -l)" = 200 ]
}

# "F sees only P, and a session that F has opened, such as an in-band bytestream
# (XEP-0047), works in both directions."
a_bytestream_goes_both_ways() { talk bytestream prosody; }

# "In the id, % and / of r are written %25 and %2F."
# "Everything else in requests and answers passes unchanged."
resources_of_any_spelling() {
	scripted relay=1
	leaves a
	for r in / % %2F x/y%2Fz 100% é🙂 'a b' "it&apos;s" '&amp;&lt;&quot;' "$(bytes 1023 /)" "$(bytes 1023 %)"; do
		online "$r"
		news
		request 3
		reply 3 "$r"
		own 1 "$r"
		id=$(echo "$r" | sed 's/%/%25/g;s|/|%2F|g')
		own_reply "$id/1"
		own_reply "$(echo "$id" | sed 's/%2F/%2f/g')/2" u@h/r error
		q=\'
		[ "$r" != "it&apos;s" ] || q=\"
		r=$(echo "$r" | sed "s/&apos;/'/;s/&quot;/\"/")
		id=$(echo "$id" | sed "s/&apos;/'/;s/&quot;/\"/")
		comes "<iq type='get' id='3' from='proxy.localhost/u@h/r' to=${q}service@localhost/$r$q/>
<iq type='result' id='3' from='proxy.localhost' to='u@h/r'/>
<iq type='get' id=$q$id/1$q from='proxy.localhost' to='u@h/r'/>
<iq type='result' id='1' from='proxy.localhost/u@h/r' to=${q}service@localhost/$r$q/>
<iq type='error' id='2' from='proxy.localhost/u@h/r' to=${q}service@localhost/$r$q/>"
		deliver presence unavailable service@localhost proxy.localhost /
	done
	unlogged dropped
}

# "In the id, % and / of r are written %25 and %2F."
own_ids_of_every_shape() {
	scripted relay=1
	for i in 1 / % %2F %2f b/1 /a/1 "it&apos;s" '&quot;x&quot;' '&lt;&amp;' é🙂 'a b' '' "$(bytes 10240 x)"; do
		news
		own "$i" a
		own_reply "a/$i"
		i=$(echo "$i" | sed "s/&apos;/'/;s/&quot;/\"/g")
		q=\'
		[ "$i" != "it's" ] || q=\"
		comes "<iq type='get' id=${q}a/$i$q from='proxy.localhost' to='u@h/r'/>
<iq type='result' id=$q$i$q from='proxy.localhost/u@h/r' to='service@localhost/a'/>"
	done
	counted "14 requests, 1 untracked, 14 answers.* 0 dropped.* 0 open"
}

# "Only a worker that is online can send requests; messages may come from any resource of
# the target, and from T."
who_is_not_online_asks_nobody() {
	scripted relay=1 prefix='"a"'
	online b
	joins ab
	leaves ab
	for r in "" / /b /ab /A /a/; do
		news
		deliver iq get "service@localhost$r" proxy.localhost/u@h/r
		deliver message chat "service@localhost$r" proxy.localhost/u@h/r "id='m'/"
		comes "$(error cancel service-unavailable 1 proxy.localhost/u@h/r "service@localhost$r")
<message type='chat' id='m' from='proxy.localhost' to='u@h/r'/>"
	done
}

# "..., and the answer is passed on only while the worker is online."
answers_to_nobody_online_are_dropped() {
	scripted relay=1 prefix='"a"'
	online b
	joins ab
	leaves ab
	news
	deliver iq result u@h/r proxy.localhost /
	for i in "" a / // % %2 %2F %2f a%2F1 a%2f1 a% a%/1 a%2/1 a%zz/1 a%00/1 a%0A/1 a%FF/1 \
	    %00/1 %C3/1 /1 /a/1 //a/1 %2Fa/1 %/a/1 A/1 %41/1 b/1 ab/1 aa/1 'a /1' ' a/1' é/1 \
	    a%C3%A9/1 "a&apos;/1" '&quot;a&quot;/1' service@localhost/a/1 "$(bytes 10240 x)/1"; do
		own_reply "$i"
		own_reply "$i" u@h/r error room@proxy.localhost
	done
	comes ""
	counted "0 requests.* 0 answers, 0 late.* 75 dropped"
}

# "Only F can answer them, ..."
answers_of_others_end_nothing() {
	scripted relay=1
	goes_to a 1
	own 1 a
	hear srv "id='a/1'" "to='u@h/r'"
	for f in u@h u@h/other u@h/r/ U@h/r v@h/r h; do
		own_reply a/1 $f
		hear srv "^<iq type='result' id='1' from='proxy.localhost/$f' to='service@localhost/a'/>$"
	done
	own_reply a/1 u@h/r error room@proxy.localhost
	hear srv "^<iq type='error' id='1' from='room@proxy.localhost/u@h/r' to='service@localhost/a'/>$"
	counted ".* 2 open"
	own_reply a/1 u@h/r error
	hear srv "^<iq type='error' id='1' from='proxy.localhost/u@h/r' to='service@localhost/a'/>$"
	counted ".* 1 open"
	passes a 1
}

# The requests of the client are answered like others, and by no other.
# "Only F can answer them, and the answer is passed on only while the worker is online."
equal_ids_meet_their_own_answers() {
	scripted relay=1 b
	for r in a b; do
		own 1 $r
		hear srv "^<iq type='get' id='$r/1' from='proxy.localhost' to='u@h/r'/>$"
	done
	for r in b a; do
		own_reply $r/1
		hear srv "^<iq type='result' id='1' from='proxy.localhost/u@h/r' to='service@localhost/$r'/>"
	done
	counted "2 requests.* 2 answers.* 0 open"
}

# "What a worker has asked is forgotten when it leaves."
what_all_have_asked_is_forgotten() {
	scripted relay=1
	deliver iq get service@localhost/a proxy.localhost/u@h/r "id='1'/"
	hear srv "id='a/1'"
	counted ".* 1 open"
	deliver presence unavailable service@localhost proxy.localhost /
	counted ".* 0 open"
}

# Its place in the table is another by then: a's.
# "What a worker has asked is forgotten when it leaves."
who_has_moved_up_is_forgotten() {
	scripted relay=1 b
	own 1 b
	hear srv "id='b/1'"
	leaves a
	counted ".* 1 open"
	leaves b
	counted ".* 0 open"
}

# "..., and the answer is passed on only while the worker is online."
who_is_back_has_its_answer() {
	scripted relay=1
	own 1 a
	hear srv "id='a/1'"
	leaves a
	joins a
	own_reply a/1
	hear srv "^<iq type='result' id='1' from='proxy.localhost/u@h/r' to='service@localhost/a'/>$"
}

# "What a worker has asked is forgotten when it leaves."
who_comes_back_asks_anew() {
	scripted relay=1
	for n in 1 2; do
		own 1 a
		hear srv "id='a/1'"
		[ $n = 2 ] || leaves a
		counted "$n requests.* $((n - 1)) open"
		joins a
	done
	own_reply a/1
	hear srv "^<iq type='result' id='1' from='proxy.localhost/u@h/r' to='service@localhost/a'/>$"
	counted "2 requests.* 1 answers.* 0 open"
}

# It may have used the id before.
# "What a worker has asked is forgotten when it leaves."
who_leaves_again_has_its_answer() {
	scripted relay=1
	own 1 a
	hear srv "id='a/1'"
	own_reply a/1
	hear srv "^<iq type='result' id='1' from='proxy.localhost/u@h/r' to='service@localhost/a'/>$"
	leaves a
	joins a
	own 1 a
	leaves a
	joins a
	hear srv "id='a/1'"
	own_reply a/1
	hear srv "^<iq type='result' id='1' from='proxy.localhost/u@h/r' to='service@localhost/a'/>$"
}

# "After a reconnect a worker is online once its presence has been read, and answers to it
# that come earlier are dropped."
answers_that_come_before_the_presence_are_dropped() {
	scripted relay=1
	own 1 a
	hear srv "id='a/1'"
	cut_off srv
	serve
	welcome
	own_reply a/1
	joins a
	unsent "<iq type='result'"
	own_reply a/1
	hear srv "<iq type='result' id='1' from='proxy.localhost/u@h/r' to='service@localhost/a'/>"
}

# "A worker may compose P/F from a JID that it knows, spelled as the JID's server spells
# it."
the_client_makes_up_addresses() {
	scripted relay=1
	message 1 service@localhost/a "proxy.localhost/new@h/%C3%A9%25"
	hear srv "<message .*from='proxy.localhost' to='new@h/é%'"
}

# "All messages and requests from one bare JID go to one worker, see sticktime; that need
# not be the worker that wrote to this JID first."
messages_and_requests_meet() {
	scripted relay=1 b c d e f
	for u in 1 2 3 4 5 6 7 8; do
		message m$u u$u@h/x
		hear srv "id='m$u'"
		r=${heard#* to=\'service@localhost/}
		r=${r%%\'*}
		echo "$r" >>"$dir/met"
		goes_to "$r" "g$u" get u$u@h/y
		goes_to "$r" "s$u" set u$u@h
		message n$u u$u@h/y room@proxy.localhost
		hear srv "id='n$u'" "to='service@localhost/$r'"
		message e$u u$u@h/z proxy.localhost "<e/>" error
		hear srv "id='e$u' from='proxy.localhost/u$u@h/z' to='service@localhost/$r'"
	done
	# the hashes of names say which, so it is the same each time
	[ "$(sort -u "$dir/met" | wc -l)" -gt 1 ]
}

# "All messages and requests from one bare JID go to one worker, see sticktime; ..."
who_speaks_first_need_not_be_answered() {
	scripted relay=1 b
	for u in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do
		message first$u service@localhost/a proxy.localhost/u$u@h/x
		message re$u u$u@h/x
	done
	hear srv "id='re.*' to='service@localhost/b'"
}

# "While no worker is online, messages without a body that hold a chat state, a receipt or
# a marker are dropped."
chat_states_for_nobody_are_dropped() {
	scripted relay=1
	leaves a
	news
	received="<received xmlns='urn:xmpp:receipts' id='7'/>"
	displayed="<displayed id='7' xmlns='urn:xmpp:chat-markers:0'/>"
	all "message 1 u@h/r proxy.localhost" "$composing" "$received" "$displayed" "<thread>t</thread>$composing$displayed"
	message 2 u@h/r proxy.localhost "<body>hi</body>" headline
	message 3 u@h/r proxy.localhost/x "<body>hi</body>" headline
	message 4 service@localhost/a proxy.localhost "<body>hi</body>" headline
	message 5 u@h/r proxy.localhost "<body>hi</body>" error
	comes ""
	joins a
	message 6 u@h/r proxy.localhost "$received"
	hear srv "id='6'.*to='service@localhost/a'"
}

# "The copies that message carbons make are always dropped."
carbon_copies_are_dropped() {
	for relay in 0 1; do
		scripted relay=$relay
		news
		for copy in sent received; do
			copy="<$copy xmlns='urn:xmpp:carbons:2'><forwarded xmlns='urn:xmpp:forward:0'/></$copy>"
			message 1 service@localhost proxy.localhost/u@h/r "$copy"
			message 1 service@localhost/a proxy.localhost "$copy"
			message 1 u@h/r proxy.localhost "$copy"
		done
		comes ""
		stop
	done
}

# "Any, each with the same probability."
# "Each request goes to a random worker, or as CHOICE describes."
# "..., at random among several."
all_have_the_same_probability() {
	for choice in RANDOM LEASTBUSY; do
		scripted choice=$choice
		joins b c
		awk 'BEGIN {
			for (i = 1; i <= 3000; i++) {
				printf "<iq type=\"get\" id=\"%d\" from=\"u@h/r\" to=\"proxy.localhost\"/>", i
				for (r = 1; r <= 3; r++)
					printf "<iq type=\"result\" id=\"%d\" from=\"service@localhost/%s\" to=\"proxy.localhost/u@h/r\"/>", i, substr("abc", r, 1)
			}
		}' >"$dir/srv.in"
		written "id='3000'"
		# 1000 each; less than 850 has a chance of one in a hundred million for each
		for r in a b c; do
			[ "$(grep -o "to='service@localhost/$r'" "$dir/srv.out" | wc -l)" -ge 850 ]
		done
		stop
	done
}

# "The same for every request from one full JID, as long as that worker is online."
# "Those who are not remembered are given a worker by hash."
# "0: nobody is remembered."
only_who_must_moves() {
	scripted choice=STICKY sticktime=0 MAXREQUESTS=100000 b c d e f g h i j
	ask_for_many ten
	ask_for_many again
	cmp "$dir/ten" "$dir/again"
	# about a thousand each
	cut -d' ' -f2 "$dir/ten" | sort | uniq -c |
	    awk '{ print } $1 < 850 || $1 > 1150 { bad = 1 } END { exit bad || NR != 10 }'
	leaves c
	ask_for_many nine
	moved ten nine 850 1150 c
	joins c
	ask_for_many back
	cmp "$dir/ten" "$dir/back"
	joins k
	ask_for_many eleven
	moved ten eleven 750 1070 k
	stop
	scripted choice=STICKY sticktime=0 MAXREQUESTS=100000 k j i h g f e d c b
	ask_for_many restarted
	cmp "$dir/eleven" "$dir/restarted"
}

# "The same for every request from one full JID, as long as that worker is online."
clients_of_one_account_are_spread() {
	scripted choice=STICKY b
	all "request 1 get" u@h/1 u@h/2 u@h/3 u@h/4 u@h/5 u@h/6 u@h/7 u@h/8
	for r in a b; do
		hear srv "<iq type='get' id='1' from='proxy.localhost/u@h/.' to='service@localhost/$r'/>"
	done
}

# "When a worker leaves, only its own requesters move, spread over the others."
only_its_own_requesters_move_when_a_resource_leaves() {
	scripted choice=STICKY MAXREQUESTS=100000 b c d
	ask_for_many four
	leaves c
	ask_for_many three
	# and some of those who share a place
	awk '$2 != "c"' "$dir/four" >"$dir/others"
	moved others three 0 700 .
}

# "One that joins gets an equal share of the requesters who were not served within
# sticktime."
who_was_not_served_lately_is_spread_anew() {
	scripted choice=STICKY MAXREQUESTS=100000 sticktime=1 b c d e f g h i
	ask_for_many nine
	sleep 1.2
	joins j
	ask_for_many ten
	moved nine ten 750 1250 j
}

# "A restart of client_proxy moves only those who had stayed when others joined."
a_restart_moves_only_those_who_had_stayed() {
	scripted choice=STICKY MAXREQUESTS=100000 b c d
	ask_for_many four
	joins e
	ask_for_many stayed
	stop
	scripted choice=STICKY MAXREQUESTS=100000 b c d e
	ask_for_many restarted
	moved stayed restarted 1500 2500 e
}

# "With relay the bare JID counts, and RANDOM and LEASTBUSY do the same."
with_relay_all_choices_but_one_are_sticky() {
	for choice in RANDOM STICKY LEASTBUSY; do
		scripted relay=1 choice=$choice
		goes_to a 0
		joins b c d
		for i in 1 2 3 4 5 6; do
			goes_to a $i get u@h/other$i
		done
		stop
	done
}

# "The one with the fewest open requests, ..."
# "For workers of different speed and requests of different cost: a slow worker gets what
# it can answer."
the_least_busy_is_chosen() {
	scripted choice=LEASTBUSY
	goes_to a slow set
	joins b
	all "works b" 1 2 3 4 5 6
	goes_to b 7 set
	passes a slow
	goes_to a 8
}

# "A worker that answers everything at once with an error counts as fast."
who_answers_with_errors_is_fast() {
	scripted choice=LEASTBUSY
	goes_to a 0 set
	joins b
	for i in 1 2 3 4 5 6; do
		goes_to b $i
		passes b $i error
	done
}

# "All to one, which is in charge until it leaves, drains or is stalled, no matter who
# joins or comes back."
# "Then the first of the others by name takes over."
# "With STANDBY, all requests now go to this worker."
one_is_in_charge() {
	scripted choice=STANDBY stall=1
	logged "in charge: service@localhost/a$"
	leaves a
	joins m
	logged "in charge: service@localhost/m$"
	joins z b c a
	logged_times 1 "in charge: service@localhost/m$"
	for i in 1 2 3 4; do
		works m $i get "u$i@h/r"
	done
	goes_to m 5
	leaves m
	logged_times 2 "in charge: service@localhost/a$"
	is_handed_to a 5
	passes a 5
	joins m
	works a 6
	shows a dnd
	logged_times 1 "in charge: service@localhost/b$"
	shows a chat
	goes_to b 8
	goes_to b 9 set
	is_set_aside b
	logged_times 3 "in charge: service@localhost/a$"
	is_handed_to a 8
	passes b 9
	logged "recovered: service@localhost/b"
	works a 10
	logged_times 5 "in charge: "
}

# Nobody takes over who is worse: a, which drains and is stalled, as b is stalled and in
# the same read c leaves.
# "All to one, which is in charge until it leaves, drains or is stalled, no matter ..."
nobody_takes_over_who_is_worse() {
	scripted stall=3 choice=STANDBY
	goes_to a 0 set
	shows a dnd
	joins b c
	is_pinged a
	is_due
	sleep 1.2
	goes_to b 1
	is_pinged a
	is_pinged b
	is_pinged a
	is_due
	is_due
	hear srv "^<iq type='get' id='due"
	tell srv "$heard$(gone_too c)"
	logged "stalled: service@localhost/b"
	passes b 1
	logged_times 1 "in charge: service@localhost/a$"
}

# "Then the first of the others by name takes over."
# "While all are stalled, the one in charge stays so unless it drains."
nobody_takes_over_while_all_are_stalled() {
	scripted choice=STANDBY stall=1 b
	goes_to a 1 set
	is_pinged a
	is_pinged a
	logged "in charge: service@localhost/b$"
	goes_to b 2 set
	is_pinged b
	is_pinged b
	logged "stalled: service@localhost/b"
	goes_to b 3 set
	passes a 1
	goes_to a 4
	logged_times 2 "in charge: service@localhost/a$"
}

# "All to one, which is in charge until it leaves, drains or is stalled, no matter ..."
# "Then the first of the others by name takes over."
conversations_are_in_one_place() {
	scripted choice=STANDBY relay=1 b c
	for u in 1 2 3 4 5 6; do
		is_told a m$u u$u@h/r
		goes_to a "g$u" get u$u@h/r
	done
	shows a dnd
	for u in 1 2 3 4 5 6; do
		is_told b n$u u$u@h/r
	done
}

# "After a reconnect, or once all have left, the worker that was in charge remains so if its
# presence is among the first that are read; ..."
who_was_in_charge_is_so_after_a_new_connection() {
	both="<presence from='service@localhost/m' to='proxy.localhost'/><presence from='service@localhost/a' to='proxy.localhost'/>"
	scripted choice=STANDBY
	leaves a
	joins m
	logged "in charge: service@localhost/m$"
	joins a
	goes_to m 1
	reconnects
	tell srv "$both"
	logged_times 2 "joined: service@localhost/a: 2 online"
	goes_to m 2
	deliver presence unavailable service@localhost proxy.localhost /
	logged_times 2 "all of its resources: 0 online"
	tell srv "$both"
	logged_times 3 "joined: service@localhost/a: 2 online"
	goes_to m 3
	logged_times 1 "in charge: service@localhost/m$"
}

# "...; else the first of those by name takes over."
the_first_by_name_is_in_charge_if_another_is_read_first() {
	scripted choice=STANDBY
	reconnects
	tell srv "$(for r in c b d; do printf %s "<presence from='service@localhost/$r' to='proxy.localhost'/>"; done)"
	logged "in charge: service@localhost/b"
	joins a
	goes_to b 1
}

# "Before the choice, workers are set aside that are stalled, that drain or that have too
# many open requests."
they_come_before_every_choice() {
	for choice in STICKY LEASTBUSY; do
		scripted choice=$choice stall=1
		works a 1
		joins b
		shows a dnd
		goes_to b 2 set
		goes_to b 3 set
		shows a chat
		goes_to "$(echo $choice | tr SL ba | cut -c1)" 4 set
		shows b chat
		is_set_aside b
		reply alive a
		goes_to a 5
		stop
	done
}

# "If all are, those with too many open requests are used rather than those that drain,
# ..."
too_many_open_requests_are_better_than_draining() {
	scripted MAXREQUESTS=64 stall=0 b
	shows a dnd
	flood 64 1 f
	fares b "64 open"
	unsent "id='f.*to='service@localhost/a'"
}

# "If all are, those with too many open requests are used rather than those that drain,
# and those that drain rather than those that are stalled."
draining_is_better_than_stalled() {
	scripted stall=1
	goes_to a 1 set
	joins b
	is_set_aside a
	shows b dnd
	all "works b" 2 3 4 5 6
}

# "..., and those that drain rather than those that are stalled."
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
	works b 5
	is_pinged a
	is_handed_to b 1
	is_handed_to b 3
	passes b 1
	passes b 3
	unsent "id='[24]'.*localhost/b'"
	goes_to b 6 set
	is_set_aside b
	each_gets_a_set a b
}

# "A worker that has a request and sends nothing for stall seconds is pinged (XEP-0199)."
# "If it sends nothing for as many seconds more after ... its gets are handed on, see retry."
# "Silence after which a worker that has a request is pinged, and after as much again
# stalled, see Workers that hang, drain or leave."
# "The worker hangs, its machine or link is dead, or the server lets it send too little,
# see stall."
# "From then on it is pinged about every stall seconds."
who_hangs_is_set_aside() {
	scripted stall=1
	begun=$(milliseconds)
	goes_to a 1 set
	joins b
	is_pinged a
	unlogged stalled
	is_pinged a
	logged "stalled: service@localhost/a: silent for over 2 s, 1 open$"
	[ $(($(milliseconds) - begun)) -ge 2000 ]
	all "works b" 2 3 4 5 6 7
	is_pinged a
	logged_times 1 stalled
}

# Workers of our own and of a library. One that its server keeps online for minutes
# dies; then one without stream management.
# "If it sends nothing for as many seconds more after ..."
# "Turn stream management (XEP-0198) off, or shorten its time-out in the server: a worker
# that has died stays online for that long, five to ten minutes at the servers' defaults."
workers_die_on_prosody() { workers_die prosody; }
workers_die_on_ejabberd() { need ejabberdctl ejabberd; workers_die ejabberd; }

workers_die() {
	library
	"$1"
	proxy stall=2
	workers s
	library_worker managed
	dies=$pid
	library_worker other
	await grep sm "$dir/managed.python"
	killed_meanwhile 700 "$dies"
	unlogged "left: service@localhost/managed"
	logged_times 1 "stalled: service@localhost/managed"
	library_worker plain
	killed_meanwhile 200 "$pid"
	logged "left: service@localhost/plain"
	logged_times 1 "stalled: "
	unlogged recovered
}

# So many gets, fifty a second, while the worker with this pid is killed: each has an
# answer, within the time it may take to see that somebody hangs.
killed_meanwhile() {
	asker "$c2s" user "x$1" proxy.localhost "$1" 50
	sleep 1
	end "$2" 9
	askers_are_done
	awk -v n="$1" '$1 != n || $3 != n || $(NF - 1) != 0 { exit 1 }
	{ for (i = 1; i < NF; i++) if ($i == "slowest") exit !($(i + 1) < 2 * 2000 + 2000) }' "$dir/asked.x$1"
}

# "Some clients answer no pings, so after the fifth ping it is also tried with a request:
# the next get that could be handed on or, if none has come after three more pings, any
# request."
# "If it is silent all the same it is tried again each time after twice as many pings, so
# that little is lost to one that is dead."
who_was_set_aside_is_tried_with_a_get() {
	scripted stall=1
	goes_to a 1 set
	joins b
	is_set_aside a
	all is_pinged a a
	works b 2
	is_pinged a
	works b 3 set
	goes_to a 4
	works b 5
	is_pinged a
	is_handed_to b 4
	passes b 4
	all is_pinged a a a
	works b 6
	is_pinged a
	goes_to a 7
	works b 8
	is_pinged a
	is_handed_to b 7
	fares a "1 open, 3 handed out, 0 answered, 2 taken back, 0 timed out, 0 ms, stalled"
}

# "Some clients answer no pings, so after the fifth ping it is also tried with a request:
# the next get that could be handed on or, if none has come after three more pings, any
# request."
who_was_set_aside_is_tried_with_a_set() {
	scripted stall=1
	goes_to a 1 set
	joins b
	is_set_aside a
	for i in 3 4 5 6 7; do
		is_pinged a
		works b $i set
	done
	is_pinged a
	goes_to a 8 set
	works b 9 set
	unlogged recovered
	passes a 8
	logged "recovered: service@localhost/a$"
	fares a "1 open, 2 handed out, 1 answered, 0 taken back, 0 timed out, [0-9]* ms, up"
	# and when it hangs again, that begins anew
	is_set_aside a
	all is_pinged a a a
	goes_to a 10
}

# In the turn in which it has been given one it is not judged by its silence.
# "Some clients answer no pings, so after the fifth ping it is also tried with a ..."
who_is_tried_has_time() {
	scripted stall=3
	goes_to a 1 set
	joins b
	is_set_aside a
	all is_pinged a a a
	hear srv "^<iq type='get' id='due"
	due=$heard
	news
	tell srv "<iq type='get' id='2' from='u@h/r' to='proxy.localhost'/>$due"
	is_handed_to a 2
	news
	unsent "id='2'.*localhost/b'"
}

# It has as long for it as others: neither its own last ping nor another's silence ends
# that.
# "Some clients answer no pings, so after the fifth ping it is also tried with a ..."
who_is_tried_has_as_long_as_others() {
	scripted stall=3
	goes_to a 1 set
	joins b
	is_set_aside a
	all is_pinged a a a
	goes_to b 2 set
	sleep 1
	goes_to a 3
	is_pinged b
	news
	unsent "id='3'.*localhost/b'"
	is_pinged a
	is_handed_to b 3
}

# "With STICKY or relay it is tried with such a get only."
who_was_set_aside_is_not_tried_with_a_set() {
	scripted stall=1 choice=STICKY
	goes_to a 1 set
	joins b
	is_set_aside a
	for i in 1 2 3 4 5 6 7 8; do
		is_pinged a
		works b $i set
	done
	goes_to a 9
}

# "With STANDBY, or while it drains, it is not tried."
what_drains_is_not_tried() {
	for choice in RANDOM STANDBY; do
		scripted stall=1 choice=$choice
		goes_to a 1 set
		joins b
		[ $choice = STANDBY ] || shows a dnd
		is_set_aside a
		for i in 2 3 4 5 6 7 8; do
			is_pinged a
			works b $i
			works b $i$i set
		done
		stop
	done
}

# What it shows while a probe is out does not bring it back, but does count.
# "With STANDBY, or while it drains, it is not tried."
who_begins_to_drain_is_not_tried() {
	scripted stall=1
	goes_to a 1 set
	joins b
	is_set_aside a
	all is_pinged a a a
	probed
	shows a dnd
	logged "draining: service@localhost/a"
	works b 2
	works b 3
	fares a "1 open, .*, stalled"
}

# "Anything it sends ends this."
# "Presence and the errors recipient-unavailable, remote-server-not-found and
# remote-server-timeout do not count as sent by it, since they may be a server's."
# "Do not answer with recipient-unavailable, remote-server-not-found or
# remote-server-timeout: they are taken for a server's."
# "It is no longer stalled, see stall."
# "A server that sends back, with service-unavailable, what it held for a dead worker brings
# this about, too: left follows soon."
what_its_server_cannot_have_sent_brings_back() {
	scripted stall=1
	servers=$(for c in recipient-unavailable remote-server-not-found remote-server-timeout; do
		bounced a other $c
	done)
	goes_to a 1 set
	is_pinged a
	tell srv "$servers"
	shows a away
	is_pinged a
	grep "stalled: service@localhost/a" "$log"
	n=0
	for how in result error held ping message request; do
		is_set_aside a
		case $how in
		result | error) reply other a $how ;;
		held) bounce other a service-unavailable ;;
		ping) deliver iq result service@localhost/a proxy.localhost "id='stall'/" ;;
		message) message 1 service@localhost/a ;;
		request) request 1 get service@localhost/a ;;
		esac
		n=$((n + 1))
		logged_times $n "recovered: service@localhost/a$"
	done
	is_set_aside a
	tell srv "$servers"
	shows a away
	probed
	shows a away
	fares a "1 open, .*, stalled"
	logged_times $n recovered
}

# "A worker that shows dnd drains: it keeps what it has."
# "The worker shows dnd, or no longer does."
who_shows_dnd_drains() {
	scripted b
	shows a dnd
	logged "draining: service@localhost/a$"
	all "goes_to b" 3 4 5 6 7 8
	tell srv "<presence from='service@localhost/a' to='proxy.localhost'><status>soon</status><show>dnd</show><priority>9</priority></presence>"
	goes_to b 9
	shows c dnd
	logged "joined: service@localhost/c: 3 online"
	logged "draining: service@localhost/c"
	leaves b
	each_gets_a_set a c
	shows c chat
	logged "back: service@localhost/c$"
	works c 10
	logged_times 2 "draining: "
	logged_times 1 "back: "
}

# "A worker that shows dnd drains: it keeps what it has."
# "To stop a worker without losing a request, let it show dnd first, and wait until
# SIGUSR1 reports 0 open for it."
a_worker_is_stopped_without_losing_a_request() {
	scripted
	goes_to a 1
	goes_to a 2 set
	joins b
	shows a dnd
	goes_to b 3
	fares a "2 open, .*, draining"
	passes a 1
	passes a 2
	fares a "0 open, 2 handed out, 2 answered, .*, draining"
	leaves a
	unlogged "failed: "
}

# "Any other show, and priorities, mean nothing."
other_shows_and_priorities_mean_nothing() {
	scripted
	all "shows a" away xa chat
	tell srv "<presence from='service@localhost/a' to='proxy.localhost'><priority>-9</priority></presence>"
	tell srv "<presence from='service@localhost/a' to='proxy.localhost'><show xmlns='x'>dnd</show></presence>"
	joins b
	each_gets_a_set a b
	unlogged "draining: "
	tell srv "<presence from='service@localhost/a' to='proxy.localhost'><show xmlns='x'>chat</show><show>dnd</show></presence>"
	logged "draining: service@localhost/a"
}

# "A worker has too many open requests if it has as many as there are places left, see
# MAXREQUESTS."
a_resource_has_its_share() {
	scripted MAXREQUESTS=64 stall=0 b
	for i in $(seq 15); do
		news
		flood 10 1 "$i."
		news
		echo "$news" | sed -n "s/.* id='\($i\.[^']*\)' from='\([^']*\)' to='\([^']*\/b\)'.*/<iq type='result' id='\1' from='\3' to='\2'\/>/p" >"$dir/answers"
		cat "$dir/answers" >"$dir/srv.in"
	done
	news
	unsent resource-constraint
	fares a "\(2[5-9]\|3[012]\) open"
	[ "$(grep -c "to='service@localhost/a'" "$dir/old")" -le 33 ]
}

# "STANDBY ignores this."
one_in_charge_gets_all() {
	scripted choice=STANDBY MAXREQUESTS=64 stall=0 b
	flood 64 1 f
	fares a "64 open"
}

# "With relay, but not STANDBY, requesters who were served within sticktime stay with a
# worker that drains or has too many open requests."
conversations_stay_while_it_drains() {
	scripted relay=1 stall=1
	is_told a 1 u@h/r
	joins b
	shows a dnd
	logged "draining: service@localhost/a"
	for i in 2 3 4 5; do
		is_told a $i u@h/other
		is_told b v$i v$i@h/r
	done
	goes_to a 6 set
	# but not with one that hangs
	is_set_aside a
	is_told b 7 u@h/r
	works b 8
}

# "All settings are constants in config.h, which make copies from config.def.h if there is
# none."
# "The binary holds the secret, so it is installed with mode 0711: others may run it but
# not read it."
# "config.h and the binary that make has built can be read by their owner only."
install_uninstall_dist() {
	cp -R . "$dir/src"
	make -C "$dir/src" install DESTDIR="$dir/root" PREFIX=/usr
	cd "$dir/src"
	cmp config.h config.def.h
	[ "$(stat -c %a config.h client_proxy "$dir/root/usr/bin/client_proxy" \
	    "$dir/root/usr/share/man/man1/client_proxy.1" | tr '\n' ' ')" = "600 700 711 644 " ]
	"$dir/root/usr/bin/client_proxy" -v
	make uninstall DESTDIR="$dir/root" PREFIX=/usr
	[ -z "$(find "$dir/root" -type f)" ]
	echo "/* mine */" >>config.h
	make clean
	make dist
	grep -q mine config.h
	mv client_proxy-*.tar.gz "$dir/first"
	touch ./*
	(umask 077 && make dist)
	cmp client_proxy-*.tar.gz "$dir/first"
	tar -xzf client_proxy-*.tar.gz -C "$dir"
	cd "$dir"/client_proxy-*
	[ "$(printf '%s ' *)" = \
	    "LICENSE Makefile README client_proxy.1 client_proxy.c config.def.h test.sh " ]
	make
	./client_proxy -v
	cd "$TESTDIR/src"
}

# "To build in another directory than the source's:"
a_read_only_source_is_built_elsewhere() {
	cp -R . "$dir/src"
	rm -f "$dir/src/config.h"
	chmod -R a-w "$dir/src"
	mkdir "$dir/elsewhere"
	cd "$dir/elsewhere"
	umask 077
	eval "$(sed -n 's/^	\(make -f .*\)/\1/p' README | sed "s,/path/to/source,$dir/src,g")"
	make -f "$dir/src/Makefile" SRC="$dir/src" DESTDIR="$dir/root" PREFIX=/usr install
	echo "/* mine */" >>config.h
	[ "$(stat -c %a "$dir/root/usr/bin" "$dir/root/usr/share/man/man1" | tr '\n' ' ')" = "755 755 " ]
	chmod -R u+w "$dir/src"
}

# "client_proxy refuses to start with a setting that cannot work."
# "A setting that cannot work is named at the start, with what is wrong with it."
# "It must be longer than patience."
# "Times are in seconds, 30 days at most, and defaults are in parentheses."
# "...; 9 at most."
# "1 if the arguments or a setting cannot work, ..."
configurations_that_cannot_work() {
	for c in target='"service"' target='"service@localhost/x"' target='"@localhost"' \
	    target='"a@b@c"' target='"service@"' target='"service@proxy.localhost"' \
	    target='"Service@localhost"' target='""' domain='""' domain='"a/b"' \
	    domain='"a b"' domain='"a@b"' domain='"A.localhost"' secret='""' \
	    domain='"proxy.localhost."' target='"service@localhost."' refresh=4294967295 \
	    keepalive=2592001 host='""' port='""' port='"65536"' backoffmax=0 choice=4 refresh=10 \
	    choice=-1 stall=2592001 retry=10 sticktime=2592001 answertime=2592001 patience=0 \
	    askmin=0 askmax=59 askmax=2592001 prefix="\"$(printf '\377')\"" \
	    domain="\"proxy$(printf '\177')\"" target="\"service@$(printf '\377')\"" \
	    domain="\"$(bytes 1024 d)\"" target="\"$(bytes 1024 a)@b\"" target="\"a@$(bytes 1024 b)\"" \
	    prefix="\"$(bytes 1024 p)\"" backoffmax=2592001 patience=2592001 askmin=2592001 \
	    refresh=2592001 tlspin='" "' tlspin='"12:34"' tlspin="\"$(bytes 32 a)\"" \
	    tlspin="\"$(bytes 63 a)\"" tlspin="\"$(bytes 65 a)\"" tlspin="\"$(bytes 64 g)\"" \
	    tlspin="\"$(bytes 576 a)\"" tlspin="\"sha256 Fingerprint=$(bytes 64 a)\""; do
		configure "$c"
		brief
		echo "$c: $rc"
		cat "$dir/err"
		[ $rc = 1 ]
		[ "$(grep -c "^client_proxy: ${c%%=*}: " "$dir/err")" = 1 ]
	done
}

# "Times are in seconds, 30 days at most, and defaults are in parentheses."
# "...; 9 at most."
the_longest_times_work() {
	days=$((30 * 86400))
	scripted keepalive=$days backoffmax=$days patience=$((days - 1)) askmin=$days askmax=$days \
	    refresh=$days answertime=$days stall=$days sticktime=$days retry=9
	works a 1
}

# "This is what happens at each limit; those in capitals can be changed in config.h, and a
# size that cannot work does not compile."
sizes_that_cannot_work() {
	for c in MAXRESOURCES=0 MAXREQUESTS=0 INSIZE=0 MAXSTANZA=4095 MAXSTANZA=-1 OUTSIZE=540671 REQUESTSIZE=0 \
	    PARSERHARD=1048575; do
		echo "$c:"
		configure "$c" && return 1
		grep "$(echo "${c%=*}" | tr '[:upper:]' '[:lower:]')_is_too_small" "$dir/built"
	done
	configure MAXSTANZA=4096 domain="\"$(bytes 600 d)\"" && return 1
	grep maxstanza_is_too_small "$dir/built"
}

# "The secret that component and server share."
# "Prosody's not-authorized means a wrong secret, its host-unknown a domain that it has no
# component for, and conflict that another copy is connected, see A second copy."
# "ejabberd says not-authorized for the first two."
wrong_secret() { refuses prosody host-unknown; }
wrong_secret_on_ejabberd() { need ejabberdctl ejabberd; refuses ejabberd not-authorized; }

# What this server says of a domain that it does not know.
refuses() {
	"$1"
	proxy secret='"wrong"'
	logged "disconnected: not-authorized"
	logged waiting
	unlogged wrong
	stop
	proxy domain='"nobody.localhost"'
	logged "disconnected: $2"
}

# "The server's name or address, IPv4 or IPv6."
ipv6_address() {
	serve "TCP6-LISTEN:$cport,bind=[::1]"
	proxy host='"::1"'
	welcome
	logged "online: proxy.localhost at ::1 port $cport"
}

# A name with several addresses, as the C library's test tool makes them up.
# "All addresses of a name are tried in turn."
# "The server cannot be reached: check that it runs, and host and port."
all_addresses_of_a_host() {
	printf '%s many.test\n' 127.0.0.9 ::1 127.0.0.1 >"$dir/hosts"
	wrapped() {
		ASAN_OPTIONS=verify_asan_link_order=0 NSS_WRAPPER_HOSTS=$dir/hosts \
		    LD_PRELOAD=libnss_wrapper.so proxy host='"many.test"'
	}
	wrapped
	logged waiting
	for a in 127.0.0.9 ::1 127.0.0.1; do
		logged "connect: $a port $cport: "
	done
	unlogged "resolve: "
	serve
	welcome
	# nor does one that has served before keep the others from being tried
	cut_off srv
	serve "TCP6-LISTEN:$cport,bind=[::1]"
	welcome
	stop
	proxy host='"no.such.host.invalid"'
	logged "resolve: no.such.host.invalid"
	logged waiting
}

# "SHA-256 fingerprints, one of which the server's certificate must have, see TLS."
# "The handshake has succeeded; with TLS the line says so."
# "These commands make a self-signed certificate for ten years and print its fingerprint:"
# "What follows = goes into tlspin."
tls_with_each_kind_of_key() {
	TLS=front
	for kind in "rsa:2048" "ec -pkeyopt ec_paramgen_curve:P-256" "ec -pkeyopt ec_paramgen_curve:P-384"; do
		rm -f "$dir"/server.* "$dir/front"
		certificate server "$kind"
		scripted
		logged "online: proxy.localhost at 127.0.0.1 port $tport with TLS"
		works a 1
		stop
		hear srv "</stream:stream>"
		end "$frontpid"
	done
}

# "Its key has to be RSA or ECDSA, not Ed25519."
tls_with_another_kind_of_key() {
	TLS=front
	certificate server ed25519
	proxy
	logged "disconnected: TLS failed: BearSSL error $((256 + 40)) "
}

# Half a megabyte there and back.
# "SHA-256 fingerprints, one of which the server's certificate must have, see TLS."
tls_under_load() {
	TLS=front
	a_fresh_parser_loses_nothing
	large 524000 "iq type='set' id='big' from='u@h/r' to='proxy.localhost'" >"$dir/srv.in"
	goes_to a last
	[ "$(tr -cd x <"$dir/srv.out" | wc -c)" -ge 524000 ]
	unlogged disconnected
}

# "Empty: plain TCP."
# "Without tlspin the connection to the server is not encrypted: it must not leave the
# machine."
without_a_pin_nothing_is_encrypted() {
	scripted
	grep -q "xmlns='jabber:component:accept'" "$dir/srv.out"
}

# "Only resources that start with this are workers, so that another program can use the
# account and get no requests."
# "If one joins that you do not know, another program uses the account: set prefix."
resources_without_the_prefix_get_nothing() {
	scripted prefix='"a"'
	online b A
	joins ab
	each_gets_a_set a ab
	unlogged "joined: service@localhost/[Ab]:"
	unsent "to='service@localhost/[Ab]'"
}

# "How long a worker has to answer a request, once that is written to the server."
# "The requester gets the error after two pings from the component to itself have come back
# through the server, one after the other, behind any answer that came in time."
# "There was no answer within answertime."
# "A request without an answer holds its place until answertime is over."
requests_wait_only_so_long() {
	scripted answertime=1
	begun=$(milliseconds)
	goes_to a 1
	works a 2
	counted ".* 1 open"
	is_due
	is_due
	has_failed remote-server-timeout 1
	[ $(($(milliseconds) - begun)) -ge 1000 ]
	logged "timed out: request from u@h/r to proxy.localhost at a, and"
	unsent "type='error' id='2'"
	counted ".* 0 open"
}

# "Handing it on does not prolong this."
the_first_time_counts() {
	scripted answertime=5
	goes_to a 1
	joins b
	shows a dnd
	sleep 1
	goes_to b 2
	sleep 1
	leaves a
	is_handed_to b 1
	is_due
	is_due
	has_failed remote-server-timeout 1
	passes b 2
	logged "timed out: request from u@h/r to proxy.localhost at b, and"
	is_late b 1
	is_late a 1
	fares b "0 open, 2 handed out, 1 answered, 0 taken back, 1 timed out, [0-9]* ms, up"
}

# "The requester gets the error after two pings from the component to itself have come ..."
nothing_is_judged_unread() {
	scripted answertime=2 patience=3
	probed
	goes_to a 1
	kill -STOP "$proxypid"
	online a
	reply 1 a
	sleep 4
	kill -CONT "$proxypid"
	hear srv "<iq type='result' id='1'"
	works a 2
	unlogged "timed out\|left: \|disconnected"
}

# The server stood still: it goes on with our ping before the answer.
# "The requester gets the error after two pings from the component to itself have come ..."
an_answer_that_waits_in_the_server_is_in_time() {
	scripted answertime=2
	goes_to a 1
	hear srv "^<iq type='get' id='due"
	sleep 0.5
	tell srv "$heard"
	hear srv "^<iq type='get' id='due"
	passes a 1
	tell srv "$heard"
	works a 2
	unlogged "timed out"
}

# Chance is another in each run, and so are the ids of what is asked.
# "Each request goes to a random worker, or as ..."
no_run_repeats_the_last() {
	for run in 1 2; do
		scripted
		last_ask >"$dir/id.$run"
		stop
	done
	! cmp "$dir/id.1" "$dir/id.2"
}

# What comes from our own address others may have made up, as servers fold the case of
# domains: it is a ping of ours only by its id.
# "The requester gets the error after two pings from the component to itself have come ..."
pings_to_ourselves_have_ids_of_chance() {
	scripted answertime=60
	goes_to a 1
	for i in due99999999999999999999 due9223372036854775 due0 due00000000 ask00000000 ping ''; do
		deliver iq result proxy.localhost proxy.localhost "id='$i'/"
		message "$i" proxy.localhost room@proxy.localhost
	done
	passes a 1
}

# A later sign than any that there could be: the second probe.
# "0: for ever."
# "stall 10: 0: never."
# "keepalive 60: 0: never."
zero_is_for_ever() {
	scripted answertime=0 stall=0 keepalive=0 refresh=4 patience=3
	goes_to a 1
	probed
	online a
	is_due
	probe_is_read
	unsent "timeout\|id='stall'"
	# those of the probes
	[ "$(stanzas <"$dir/srv.out" | grep -c "id='due")" = 3 ]
}

# To those who say anything within `stall' nothing is sent, be a request never
# answered.
# "A worker that answers in time is not pinged."
nobody_is_pinged_who_talks() {
	scripted stall=4
	goes_to a slow set
	joins b
	for i in 1 2 3 4 5 6 7 8 9 10 11 12; do
		reply $i a result x@h/r
		sleep 0.5
		! find_stanza srv "^<iq type='get' id='due" || tell srv "$heard"
	done
	grep -q "id='due" "$dir/srv.out"
	unsent "id='stall'"
	unlogged stalled
}

# "A worker that answers in time is not pinged."
who_speaks_before_our_own_ping_is_back_is_not_silent() {
	scripted stall=1
	goes_to a 1 set
	hear srv "^<iq type='get' id='due"
	due=$heard
	reply other a
	tell srv "$due"
	news
	unsent "id='stall'"
}

# "While a ping of the component to itself takes longer than stall, no worker is pinged or
# set aside for its silence."
on_a_slow_way_nobody_is_silent() {
	scripted stall=1
	goes_to a 1
	joins b
	is_pinged a
	hear srv "^<iq type='get' id='due"
	sleep 1.5
	tell srv "$heard"
	was_heard_in_time
}

# Nor by the pings that come back with that.
# "While a ping of the component to itself takes longer than stall, no worker is pinged or
# set aside for its silence."
# "Once it is back their silence counts from then."
a_fast_ping_does_not_hide_a_slow_one() {
	scripted stall=2 patience=2
	goes_to a 1
	joins b
	is_pinged a
	is_due
	hear srv "^<iq type='get' id='due"
	slow=$heard
	hear srv "^<iq type='get' id='due"
	sleep 0.5
	tell srv "$slow$heard"
	was_heard_in_time
}

# Before the server has read the ping its silence says nothing.
# "If it sends nothing for as many seconds more after the server has read that, it is
# stalled: while some other worker is not, its gets are handed on, see retry."
who_has_just_been_pinged_has_time() {
	scripted stall=4
	goes_to a 1
	joins b
	is_pinged a
	hear srv "^<iq type='get' id='due"
	sleep 3
	tell srv "$heard"
	sleep 2
	for i in 1 2 3; do
		pings a || :
		sleep 0.2
	done
	was_heard_in_time
}

# The server stood still for less than stall: what it has not sent yet comes now.
# "If it sends nothing for as many seconds more after the server has read that, it is
# stalled: while some other worker is not, its gets are handed on, see retry."
who_is_heard_once_the_server_goes_on_is_not_silent() {
	scripted stall=2
	goes_to a 1
	joins b
	is_pinged a
	is_due
	hear srv "^<iq type='get' id='due"
	sleep 1
	tell srv "$heard"
	hear srv "^<iq type='get' id='due"
	reply other a
	tell srv "$heard"
	news
	passes a 1
	unlogged stalled
}

# So it is when several of our pings come back before that.
# "If it sends nothing for as many seconds more after the server has read that, it is
# stalled: while some other worker is not, its gets are handed on, see retry."
who_is_heard_behind_two_pings_is_not_silent() {
	scripted stall=4 patience=2
	goes_to a 1
	joins b
	is_pinged a
	is_due
	hear srv "^<iq type='get' id='due"
	first=$heard
	hear srv "^<iq type='get' id='due"
	tell srv "$first$heard"
	was_heard_in_time
}

# So are those that have only just come to it.
# "If it sends nothing for as many seconds more after the server has read that, it is
# stalled: while some other worker is not, its gets are handed on, see retry."
its_last_gets_are_handed_on_too() {
	scripted stall=2 choice=STICKY
	goes_to a 1
	joins b
	is_to_be_set_aside a
	tell srv "<iq type='get' id='2' from='u@h/r' to='proxy.localhost'/>$heard"
	is_handed_to a 2
	logged "stalled: service@localhost/a"
	is_handed_to b 1
	is_handed_to b 2
	all "passes b" 1 2
}

# It was not silent for too long yet when that was sent: what it has said since may be
# behind it.
# "A worker that answers in time is not pinged."
who_was_not_silent_when_our_own_ping_was_sent_is_not() {
	scripted stall=5
	goes_to a 1 set
	joins b
	sleep 1.5
	each_gets_a_set b
	is_due
	hear srv "^<iq type='get' id='due"
	due=$heard
	sleep 3
	tell srv "$due<iq type='result' id='other' from='service@localhost/b' to='proxy.localhost/u@h/r'/>"
	hear srv "id='stall' .*/a'"
	news
	unsent "id='stall'.*localhost/b'"
}

# "How often a get is handed to another worker, with the same from, id and content."
# "0: never; ..."
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
}

# "That happens when its worker leaves or is stalled or, except with STANDBY, when the
# error recipient-unavailable comes for it, which servers send for a client that has just
# gone."
a_bounce_asks_another() {
	for choice in RANDOM STANDBY; do
		scripted choice=$choice
		goes_to a 1
		goes_to a 2 set
		joins b
		bounce 1 a recipient-unavailable
		bounce 2 a recipient-unavailable
		if [ $choice = RANDOM ]; then
			is_handed_to b 1
			passes b 1
		else
			hear srv "<iq type='error' id='1' from='proxy.localhost' to='u@h/r'>"
			goes_to a 3
			unlogged "in charge: service@localhost/b"
		fi
		hear srv "<iq type='error' id='2' from='proxy.localhost' to='u@h/r'>"
		unlogged stalled
		stop
	done
}

# Which of them an error is for cannot be told, but each counts, in whatever pieces they come.
# "That happens when its worker leaves or is stalled or, except with STANDBY, when the
# error recipient-unavailable comes for it, ..."
alike_gets_bounce_at_once() {
	scripted
	goes_to a 1
	request 1
	fares a "2 open"
	joins b
	tell srv "$(bounced a 1)$(bounced a 1)"
	fares a "0 open, 2 handed out, 0 answered, 2 taken back"
	fares b "2 open"
	passes b 1
	passes b 1
}

# The requester's other requests stay where they were.
# "The same for every request from one full JID, as long as that worker is online."
a_bounce_moves_no_requester() {
	scripted choice=STICKY
	goes_to a 1
	joins b
	bounce 1 a recipient-unavailable
	is_handed_to b 1
	goes_to a 2
}

# An element of that name in another namespace is no condition (RFC 6120 8.3.2).
# "That happens when its worker leaves or is stalled or, except with STANDBY, when the
# error recipient-unavailable comes for it, ..."
another_elements_name_asks_nobody() {
	scripted
	goes_to a 1
	joins b
	tell srv "$(bounced a 1 | sed 's/urn:ietf[^ ]*stanzas/urn:x/')"
	hear srv "^<iq type='error' id='1' from='proxy.localhost' to='u@h/r'><error type='cancel'><recipient-unavailable xmlns='urn:x'/></error></iq>$"
	unsent "localhost/b'"
}

# With nobody else to ask the error passes as it is.
# "..., an error counts only from the worker that was given the request last."
a_bounce_of_the_only_one_passes() {
	scripted
	goes_to a 1
	bounce 1 a recipient-unavailable
	hear srv "^<iq type='error' id='1' from='proxy.localhost' to='u@h/r'><error type='cancel'><recipient-unavailable "
	counted ".* 1 answers, 0 late"
}

# What fails in one turn is handed on at its end: not to b, which leaves in it.
# "Every request is answered once."
# "If its worker goes offline or hangs, a get is handed to another worker, see retry."
a_bounce_asks_nobody_who_leaves() {
	scripted choice=LEASTBUSY
	goes_to a 1
	joins b
	goes_to b 2 set
	joins c
	goes_to c 3 set
	passes b 2
	tell srv "$(bounced a 1)$(gone_too a)$(gone_too b)"
	is_handed_to c 1
	passes c 1
}

# The ping that tells that a hangs is back, and in the same read what it held bounces.
# "Every request is answered once."
a_get_that_is_taken_back_bounces() {
	scripted stall=3
	goes_to a 1
	goes_to a 2
	joins b
	is_to_be_set_aside a
	tell srv "$heard$(bounced a 1)$(bounced a 2)"
	is_handed_to b 1
	is_handed_to b 2
	fares a "0 open, 2 handed out, 0 answered, 2 taken back"
	passes b 1
	passes b 2
}

# It is taken back from a, and in the same read the only other one leaves.
# "A request that is not handed on is answered with an error when its worker goes offline or
# answertime is over; ..."
a_get_stays_with_who_is_left() {
	scripted stall=3
	goes_to a 1
	joins b
	is_to_be_set_aside a
	tell srv "$heard$(gone_too b)"
	logged "left: service@localhost/b"
	passes a 1
	fares a "0 open, 1 handed out, 1 answered, 0 taken back"
}

# With the name of the other one it would be larger than MAXSTANZA.
# "A request that is not handed on is answered with an error when its worker goes offline or
# answertime is over; ..."
a_get_stays_where_it_fits() {
	scripted stall=3 MAXSTANZA=5000 REQUESTSIZE=6000
	content=$(bytes 4900 x)
	deliver iq get u@h/r proxy.localhost "id='1'>$content</iq"
	hear srv "<iq type='get' id='1' .*to='service@localhost/a'>$content</iq>"
	joins "$(bytes 60 b)"
	is_set_aside a
	news
	passes a 1
	fares a "0 open, 1 handed out, 1 answered, 0 taken back"
}

# "That happens when its worker leaves or is stalled or, except with STANDBY, when the
# error recipient-unavailable comes for it, ..."
a_bounce_is_an_error_if_all_others_leave() {
	scripted
	goes_to a 1
	joins b
	tell srv "$(bounced a 1)$(gone_too b)"
	has_failed recipient-unavailable 1
}

# "That happens when its worker leaves or is stalled or, except with STANDBY, when the
# error recipient-unavailable comes for it, ..."
a_get_may_bounce_twice() {
	scripted
	goes_to a 1
	joins b
	tell srv "$(bounced a 1)$(bounced a 1)"
	is_handed_to b 1
	passes b 1
	counted ".* 0 open"
}

# It has come back before the get was handed on, in the read in which it was set aside.
# "If it sends nothing for as many seconds more after the server has read that, it is
# stalled: while some other worker is not, its gets are handed on, see retry."
who_keeps_its_get_is_watched() {
	scripted stall=3 patience=1 choice=STANDBY
	goes_to a 1
	joins b
	is_to_be_set_aside a
	first=$heard
	hear srv "^<iq type='get' id='due"
	tell srv "$first<iq type='result' id='stall' from='service@localhost/a' to='proxy.localhost'/>$heard"
	logged "recovered: service@localhost/a"
	# as it was set aside, and now
	is_pinged a
	is_set_aside a
	is_handed_to b 1
}

# It was set aside, and has come back, in one read.
# "All to one, which is in charge until it leaves, drains or is stalled, no matter who joins
# or comes back."
who_is_in_charge_again_is_not_asked_twice() {
	scripted stall=3 choice=STANDBY
	goes_to a 1
	joins b
	is_to_be_set_aside a
	tell srv "$heard<iq type='result' id='stall' from='service@localhost/a' to='proxy.localhost'/>"
	logged "recovered: service@localhost/a"
	news
	[ "$(echo "$news" | grep -c "id='1'")" = 1 ]
	passes a 1
	unlogged "in charge: service@localhost/b"
}

# "Except with STANDBY, of workers that are not set aside those that owe no answer to a
# ping are preferred."
a_get_goes_rather_to_one_that_is_not_silent() {
	scripted stall=1
	all "goes_to a" 1 4 5 6 7 8
	joins b
	shows a dnd
	goes_to b 2 set
	shows a chat
	shows b dnd
	goes_to a 3 set
	shows b chat
	# so that both are silent from the same turn on, and pinged in the same
	tell srv "$(for r in a b; do printf %s "<iq type='result' id='other' from='service@localhost/$r' to='proxy.localhost/u@h/r'/>"; done)"
	is_pinged a
	is_pinged b
	joins c
	leaves a
	all "is_handed_to c" 1 4 5 6 7 8
}

# Who drains could be stopped with it.
# "Except with STANDBY, of workers that are not set aside those that owe no answer to a
# ping are preferred."
a_get_goes_rather_to_one_that_is_silent_than_to_one_that_drains() {
	scripted stall=3
	goes_to a 1 set
	joins b
	shows a dnd
	goes_to b 2
	shows a chat
	joins c
	shows c dnd
	is_pinged a
	leaves b
	is_handed_to a 2
}

# "A set is not handed on, since it may have been carried out."
# "Its sets stay with it."
a_set_is_never_repeated() {
	scripted stall=1
	goes_to a 1 set
	joins b
	is_set_aside a
	leaves a
	has_failed recipient-unavailable 1
	goes_to b 2
	unsent "id='1'.*service@localhost/b"
}

# "A worker that is back before anybody has said that it left, as after a crash of its
# server, counts as never gone: requests that were lost there fail only when answertime is
# over."
who_is_back_unnoticed_has_not_left() {
	scripted answertime=2
	goes_to a 1
	online a
	works a 2
	joins b
	is_due
	is_due
	has_failed remote-server-timeout 1
	unsent "id='1'.*service@localhost/b"
}

# "The first result counts; an error counts only from the worker that was given the
# request last."
# "If it sends nothing for as many seconds more after ..."
the_first_answer_counts() {
	scripted stall=1
	all "goes_to a" 1 2 3 4 5
	joins b
	is_set_aside a
	all "is_handed_to b" 1 2 3 4 5
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
	leaves a
	is_late a 5 error
	passes b 5
	counted "5 requests, 0 untracked, 5 answers, 8 late, .* 0 open"
}

# Nor does an error from a former holder, if the id was used again for what another has.
# "The first result counts; an error counts only from the worker that was given the
# request last."
an_error_of_who_does_not_hold_it() {
	scripted choice=LEASTBUSY
	goes_to a 1
	joins b
	goes_to b 1 set
	leaves a
	is_handed_to b 1
	is_late a 1 error
	fares b "2 open"
	passes b 1
	joins a
	is_late a 1 error
	passes b 1
}

# "With STICKY or relay, a requester who was served within this time stays with the same
# worker when others join, unless that is set aside, see Workers that hang, drain or
# leave."
who_was_served_stays() {
	scripted choice=STICKY sticktime=5
	goes_to a 1
	online b c d e f g h i
	for i in 2 3 4 5 6 7 8; do
		goes_to a $i
		sleep 0.8
	done
	leaves a
	request 9
	hear srv "id='9' from='proxy.localhost/u@h/r'"
	r=${heard#* to=\'service@localhost/}
	online a j k l m n o
	goes_to "${r%%\'*}" 10
}

# "Requesters are remembered in MAXREQUESTS places by hash, only the last one in each."
two_who_share_a_place() {
	scripted choice=STICKY MAXREQUESTS=100000 b c d e f g h i
	ask_for_many nine
	joins j
	ask_for_many ten
	# only some of those who share a place; else it would be a thousand
	moved nine ten 0 300 .
}

# "Silence of the server after which client_proxy sends a ping through it to itself; after
# as much again it reconnects."
# "the server is silent means that nothing has come within keepalive of a ping of the
# component to itself, or that the server has read nothing for twice as long: it hangs,
# cannot be reached, or another connection has got the ping, see A second copy."
liveness() {
	scripted keepalive=3
	for back in get result; do
		hear srv "<iq type='get' id='due[0-9a-f][0-9a-f]*' from='proxy.localhost' to='proxy.localhost'><ping xmlns='urn:xmpp:ping'/></iq>"
		tell srv "$(echo "$heard" | sed "s/type='get'/type='$back'/")"
	done
	hear srv "<iq type='get' id='due[0-9a-f][0-9a-f]*'"
	begun=$(milliseconds)
	tell srv " "
	hear srv "<iq type='get' id='due[0-9a-f][0-9a-f]*'"
	[ $(($(milliseconds) - begun)) -ge 3000 ]
	begun=$(milliseconds)
	goes_to a ping
	unlogged "disconnected\|dropped"
	logged "disconnected: the server is silent"
	[ $(($(milliseconds) - begun)) -ge 6000 ]
	logged waiting
}

# Nor is one sent when nothing is due.
# "Silence of the server after which client_proxy sends a ping through it to itself; ..."
a_server_that_talks_is_not_pinged() {
	scripted
	reconnects
	joins a
	news
	unsent "urn:xmpp:ping"
}

# What was lost with a connection holds nothing up on the next.
# "It is also the pause between pings of the component to itself that do not come back."
a_new_connection_waits_for_no_ping_of_the_old() {
	scripted patience=60
	deliver presence subscribed service@localhost proxy.localhost /
	hear srv "^<iq type='get' id='due"
	reconnects
	probed
}

# The first is lost, and the next overtaken.
# "It is also the pause between pings of the component to itself that do not come back."
# "The requester gets the error after two pings from the component to itself have come ..."
any_ping_that_is_back_counts() {
	scripted answertime=1 patience=2 stall=0
	goes_to a 1 set
	hear srv "^<iq type='get' id='due"
	hear srv "^<iq type='get' id='due"
	second=$heard
	hear srv "^<iq type='get' id='due"
	tell srv "$second"
	is_due
	hear srv "<remote-server-timeout "
}

# "If a ping to itself comes back as an error, client_proxy ends the stream and
# reconnects."
# "the server does not route to us any more means that it has forgotten the component and
# kept the connection, as Prosody does when it loads the component anew."
a_server_that_forgets_us_is_left() {
	prosody
	proxy keepalive=3
	services a
	login user x
	prosodyctl --config "$dir/prosody.cfg.lua" shell module reload component proxy.localhost
	logged "disconnected: the server does not route to us any more"
	logged_times 2 "joined: service@localhost/a:"
	ask user 1
	hear a "<iq" "id='1'"
}

# What the target sends to our address in other letters comes back from ourselves.
# "If a ping to itself comes back as an error, ..."
an_error_for_no_ping_of_ours_changes_nothing() {
	scripted keepalive=3
	probed
	deliver iq error proxy.localhost proxy.localhost "id='ping'/"
	deliver iq error proxy.localhost proxy.localhost "id=''/"
	hear srv "<iq type='get' id='due[0-9a-f][0-9a-f]*'"
	deliver iq error proxy.localhost proxy.localhost "id='ping'/"
	deliver message error proxy.localhost proxy.localhost "$(echo "$heard" | grep -o "id='[^']*'")/"
	works a 1
	unlogged disconnected
}

# "The longest pause between attempts to connect to a server that accepts connections but
# refuses or soon ends them."
# "The first pause is under a second; its upper bound doubles until a connection has
# lasted for backoffmax."
backing_off() {
	for how in refuses accepts; do
		proxy backoffmax=4
		for i in 1 2 3 4 5 6; do
			serve
			if [ $how = refuses ]; then
				hear srv "<stream:stream"
				tell srv "<stream:stream id='x' xmlns='jabber:component:accept'
					xmlns:stream='http://etherx.jabber.org/streams'>"
			else
				welcome
				[ $i != 6 ] || sleep 4
			fi
			tell srv "<stream:error><conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>
				</stream:error></stream:stream>"
			logged_times $i 'disconnected: conflict'
			await gone "$(cat "$dir/srv.pid")"
		done
		await sh -c "[ \$(grep -c waiting '$log') -ge 6 ]"
		grep -A 1 "disconnected: conflict" "$log" | awk -v how=$how '/waiting/ { t[++n] = $3 }
		END { exit !((how == "accepts" ? t[6] < 1 : t[6] >= 2) && t[1] < 1 && t[2] >= 1 && t[2] < 2 && t[3] >= 2 && t[3] < 4 && t[4] >= 2 && t[5] >= 2 && t[5] < 4) }'
		stop
	done
}

# "If no address accepts a connection, all are tried again within a second, for as long as
# it takes."
# "While it cannot be, this and the pause are logged for the first round through all
# addresses and then for every thousandth, about every quarter of an hour if the
# connection is refused."
a_server_that_comes_back_is_seen_at_once() {
	proxy
	logged waiting
	sleep 8
	[ "$(wc -l <"$log")" -le 5 ]
	begun=$(milliseconds)
	serve
	hear srv "<stream:stream"
	echo "$(($(milliseconds) - begun)) ms after the port was open"
	[ $(($(milliseconds) - begun)) -lt 2000 ]
	logged_times 1 "connect: "
}

# Here the first 2500 seconds pass at once, some 3300 rounds.
# "While it cannot be, this and the pause are logged for the first round through all ..."
every_thousandth_round_is_logged() {
	plainly
	cc -shared -fPIC -o "$dir/hasty.so" -x c - -ldl <<-\E
	#define _GNU_SOURCE
	#include <dlfcn.h>
	#include <poll.h>
	#include <time.h>
	static long long passed;
	int
	poll(struct pollfd *p, nfds_t n, int ms)
	{
		int hurries = passed < 2500000;
		int ready = ((int (*)(struct pollfd *, nfds_t, int))dlsym(RTLD_NEXT, "poll"))(p, n, hurries ? 0 : ms);

		passed += hurries && !ready ? ms : 0;
		return ready;
	}
	int
	clock_gettime(clockid_t clock, struct timespec *t)
	{
		int bad = ((int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime"))(clock, t);

		t->tv_sec += (t->tv_nsec / 1000000 + passed) / 1000;
		t->tv_nsec = (t->tv_nsec / 1000000 + passed) % 1000 * 1000000;
		return bad;
	}
	E
	LD_PRELOAD=$dir/hasty.so proxy
	logged_times 4 "connect: 127.0.0.1 port $cport: Connection refused"
	logged_times 4 "waiting: "
}

# "How long each address of the server has to accept the connection, ..."
a_server_that_accepts_no_connection() {
	peer deaf "$cport" >"$dir/deaf"
	await grep full "$dir/deaf"
	proxy patience=1
	logged "connect: 127.0.0.1 port $cport: \\(Connection\\|Operation\\) timed out"
	logged waiting
}

# "..., then to complete the handshake, ..."
a_server_that_says_nothing() {
	serve
	proxy patience=1
	logged "disconnected: no answer to the handshake in time"
	hear srv "</stream:stream>"
}

# Nothing of the stream goes out to one that does not answer, either.
# "How long each address of the server has to accept the connection, then to complete the
# handshake, and how long workers have to answer a probe once the server has read it, see
# refresh."
tls_that_is_not_answered() {
	TLS=front
	front_of "OPEN:$dir/silent,creat,append" -u
	proxy patience=1
	logged "disconnected: no answer to the handshake in time"
	LC_ALL=C grep -c "stream" "$dir/silent" && return 1
	unlogged online
}

# "The subscription request is repeated until the target accepts it: first after askmin,
# then each time after twice as long, up to askmax."
# "After the target has withdrawn the subscription this begins anew, with the first
# request after askmin."
asking_again() {
	scripted askmin=3 askmax=10
	# since the first time, so that what is heard late makes nothing else early
	for at in 3000 9000 19000; do
		hear srv "type='subscribe'"
		took=$(($(milliseconds) - accepted))
		echo "asked again after $took ms"
		[ $took -ge $at ]
		[ $took -lt $((at + 2500)) ]
		# to refuse it once more changes nothing
		deliver presence unsubscribed service@localhost proxy.localhost /
	done
	deliver presence subscribed service@localhost proxy.localhost /
	hear srv "type='probe'"
	begun=$(milliseconds)
	deliver presence unsubscribed service@localhost proxy.localhost /
	hear srv "type='subscribe'"
	[ $(($(milliseconds) - begun)) -lt 5500 ]
}

# Nor does anything else ask for it before its time.
# "The subscription request is repeated until the target accepts it: first after askmin, ..."
only_time_has_it_asked_again() {
	scripted b
	leaves b
	goes_to a 1
	bounce 1 a service-unavailable
	hear srv "^<iq type='error' id='1'"
	deliver presence probe service@localhost/a proxy.localhost /
	hear srv "<presence from='proxy.localhost' to='service@localhost/a'/>"
	sleep 1
	works a 2
	[ "$(grep -o "<presence type='subscribe' " "$dir/srv.out" | wc -l)" = 1 ]
}

# "Time from the end of one presence probe to the next."
probes_have_pauses() {
	scripted refresh=4 patience=3
	deliver presence subscribed service@localhost proxy.localhost /
	hear srv "<presence type='probe'"
	for _ in 1 2; do
		hear srv "$ping"
		at=$(milliseconds)
		tell srv "$heard"
		only_answer a
		hear srv "<presence type='probe'"
		took=$(($(milliseconds) - at))
		echo "probed again after $took ms"
		# from the end, that is after patience
		[ $took -ge 7000 ]
		[ $took -lt 9500 ]
	done
}

# "Probes find workers whose presence was missed."
# "A worker that does not answer while others do may only be late, so a second probe
# follows."
# "If it does not answer that either, as when its server's machine has died, it is taken
# to have left."
# "..., and how long workers have to answer a probe once the server has read it, see
# refresh."
silent_departures_are_found() {
	scripted patience=3
	goes_to a 1
	goes_to a 2 set
	joins b c
	probed
	only_answer b
	probe_is_read
	unlogged "left: "
	only_answer b c c
	logged "left: service@localhost/a: 2 online"
	unlogged "left: service@localhost/[bc]"
	hear srv "<iq type='get' id='1' .*/[bc]'"
	has_failed recipient-unavailable 2
}

# Among many, each probe may be missed by others.
# "A worker that misses only the second one is taken to have left if it misses the next,
# too."
a_second_probe_has_no_second_one() {
	scripted patience=3 refresh=9 b c
	probed
	only_answer b c
	probe_is_read
	only_answer a c
	news
	[ "$(grep -c "<presence type='probe'" "$dir/old")" = 2 ]
	unlogged "left: "
	probe_is_read
	only_answer a c c
	logged "left: service@localhost/b: 2 online"
	unlogged "left: service@localhost/[ac]"
}

# Another client of the account, which is no worker, answers all of them.
# "A worker that does not answer while others do may only be late, so a second probe
# follows."
# "If none of the workers that were online before answers a probe, none is removed."
who_misses_each_probe_has_one_second_probe() {
	scripted patience=3 refresh=5 prefix='"a"'
	probed
	only_answer home
	for _ in 2 3; do
		probe_is_read
		only_answer home
	done
	news
	[ "$(grep -c "<presence type='probe'" "$dir/old")" = 3 ]
	unlogged "unanswered\|left: "
}

# A request for the subscription need not have come between.
# "A worker that does not answer while others do may only be late, so a second probe
# follows."
a_probe_after_the_target_withdrew_is_no_second_one() {
	scripted patience=3 refresh=3600 b
	probed
	only_answer a
	probe_is_read
	deliver presence unsubscribed service@localhost proxy.localhost /
	logged "not subscribed: "
	online a b
	probed
	only_answer a
	probe_is_read
}

# "If it does not answer that either, as when its server's machine has died, it is taken
# to have left."
a_probe_that_replaces_one_asks_all() {
	scripted patience=3 refresh=3600 b
	probed
	only_answer a
	probe_is_read
	online a
	probed
	only_answer a
	logged "left: service@localhost/b: 1 online"
}

# As when the only one that lives is started anew again and again, beside a dead one.
# "A worker that does not answer while others do may only be late, so a second probe
# follows."
# "If none of the workers that were online before answers a probe, none is removed."
who_joins_during_a_probe_has_others_removed_by_the_second() {
	for dead in a c; do
		scripted patience=3 refresh=3600 "$dead"
		probed
		joins b
		shows b away
		is_due
		probe_is_read
		unlogged "unanswered\|left: "
		only_answer b
		logged "left: service@localhost/$dead"
		unlogged "left: service@localhost/b"
		stop
	done
}

# "When a worker leaves, a probe is sent at once or, if one is out, after that: the worker
# may have logged in anew before its server told the end of its last session."
who_has_a_new_session_is_found() {
	scripted patience=3 refresh=3600 b
	probed
	only_answer a b
	online a
	leaves a
	probe_is_read
	online b
	leaves b
	only_answer a
	logged_times 2 "joined: service@localhost/a:"
	probe_is_read
	only_answer b
	logged_times 2 "joined: service@localhost/b:"
}

# Servers may say so in answer to each probe.
# "When a worker leaves, a probe is sent at once or, if one is out, after that: ..."
nobody_is_there_leads_to_one_probe() {
	scripted patience=3 refresh=3600
	probed
	only_answer a
	leaves a
	probe_is_read
	deliver presence unavailable service@localhost proxy.localhost /
	is_due
	news
	[ "$(grep -c "<presence type='probe'" "$dir/old")" = 2 ]
	unlogged "unanswered: "
}

# "When a worker's answer is the error service-unavailable, which servers also send for one
# that has gone, or remote-server-not-found or remote-server-timeout, a probe is sent in the
# same way, but not again for this reason within askmin."
service_unavailable_leads_to_one_probe() {
	scripted patience=3 b
	probed
	only_answer a b
	bounce 1 a item-not-found
	for r in a b; do
		for i in 1 2 3; do
			bounce $r$i $r service-unavailable
			hear srv "<iq type='error' id='$r$i'"
		done
	done
	probe_is_read
	only_answer a b
	bounce 2 b service-unavailable
	news
	[ "$(grep -c "<presence type='probe'" "$dir/old")" = 2 ]
	unlogged "left: "
}

# "..., a probe is sent in the same way, but not again for this reason within askmin."
service_unavailable_leads_to_another_probe_later() {
	scripted patience=3 askmin=2
	probed
	only_answer a
	# each takes longer than askmin
	for why in service-unavailable remote-server-not-found remote-server-timeout; do
		bounce 1 a $why
		probe_is_read
		only_answer a
	done
	unlogged "left: "
}

# "..., a probe is sent in the same way, but not again for this reason within askmin."
service_unavailable_counts_if_the_probe_does_not_arrive() {
	scripted refresh=3600 b
	probed
	bounce 1 a service-unavailable
	presence_error "remote-server-not-found cancel" service@localhost "$(last_ask)"
	logged "unreachable: "
	hear srv "<presence type='probe'"
}

# No probe is out that this one could follow.
# "..., a probe is sent in the same way, but not again for this reason within askmin."
service_unavailable_counts_after_an_unreachable_target() {
	scripted refresh=3600 b
	probed
	presence_error "remote-server-not-found cancel" service@localhost "$(last_ask)"
	logged "unreachable: "
	bounce 1 a service-unavailable
	hear srv "<presence type='probe'"
}

# "If none of the workers that were online before answers a probe, none is removed."
# "If nobody answers it in time, the target's roster may have lost the subscription, so that
# is requested again at once."
# "When the target's server confirms the subscription, a probe follows."
# "No worker is online, the target's roster has lost the subscription, or answers take longer
# than patience, see refresh."
a_lost_subscription_is_asked_for_again() {
	scripted patience=3
	probed
	is_due
	logged "unanswered: "
	written "type='subscribe' .* type='probe' .* type='subscribe' "
	works a 1
	probed
	only_answer a
	works a 2
	logged_times 1 unanswered
	unlogged "left: "
}

# What comes too late each time would bring requests without end.
# "From then until a probe is answered in time, such a request is sent whenever a probe is
# due, unless presence has come since the last of either."
# "Requests that follow a probe that nobody has answered are not logged."
# "Logged once, until a probe is answered in time or the subscription or the connection is
# lost."
who_is_too_late_each_time_is_not_asked_more_often() {
	scripted patience=3 refresh=5
	probed
	is_due
	hear srv "<presence type='subscribe'"
	online a
	probed
	is_due
	online a
	probe_is_read
	news
	[ "$(grep -c "<presence type='subscribe'" "$dir/old")" = 2 ]
	is_due
	hear srv "<presence type='subscribe'"
	logged_times 1 "unanswered: "
	logged_times 1 "subscribing: "
}

# The first was answered, so the subscription is not lost.
# "A second probe that nobody answers does not count."
a_second_probe_that_nobody_answers_does_not_count() {
	scripted patience=3 refresh=5 b
	probed
	only_answer a
	probe_is_read
	is_due
	probe_is_read
	news
	[ "$(grep -c "<presence type='subscribe'" "$dir/old")" = 1 ]
	unlogged "unanswered\|left: "
	is_due
	logged "unanswered: "
	hear srv "<presence type='subscribe'"
}

# It is a first one again: much may have happened until the next.
# "If an error says that the target's server cannot be reached, or cannot answer now, no
# worker is removed, and the server is asked again within refresh."
a_second_probe_that_does_not_arrive_is_none() {
	scripted patience=3 refresh=5 b
	probed
	only_answer a
	probe_is_read
	presence_error "remote-server-not-found cancel" service@localhost "$(last_ask)"
	logged "unreachable: "
	probe_is_read
	is_due
	logged "unanswered: "
	hear srv "<presence type='subscribe'"
	unlogged "left: "
}

# Another client may use the account, see prefix.
# "If none of the workers that were online before answers a probe, none is removed."
who_is_no_worker_answers_for_none() {
	scripted patience=3 refresh=5 prefix='"a"'
	probed
	for _ in 1 2; do
		only_answer phone
		probe_is_read
	done
	unlogged "unanswered\|left: "
}

# What was not answered before the target withdrew it does not count.
# "No worker is online, the target's roster has lost the subscription, or answers take longer
# than patience, see refresh."
a_lost_subscription_is_seen_again() {
	scripted patience=3
	probed
	is_due
	logged "unanswered: "
	deliver presence unsubscribed service@localhost proxy.localhost /
	logged "not subscribed: "
	probed
	is_due
	logged_times 2 "unanswered: "
}

# Servers send errors when a session dies, too: only the answer to what was asked
# last counts, and an unreachable server says nothing of the target.
# "If an error says that the target's server cannot be reached, or cannot answer now, no
# worker is removed, and the server is asked again within refresh."
# "The target's server cannot be reached, or cannot answer now; why is what the error
# says."
# "It is asked again, see refresh."
an_unreachable_target_has_not_left() {
	scripted refresh=4 patience=3
	probed
	for c in "item-not-found cancel" "remote-server-not-found cancel" "resource-constraint wait"; do
		presence_error "$c" service@localhost/a "$(last_ask)"
		presence_error "$c" service@localhost other
	done
	works a 1
	only_answer a
	for c in "remote-server-not-found cancel" "resource-constraint wait"; do
		hear srv "<presence type='probe'"
		presence_error "$c" service@localhost "$(last_ask)"
		logged "unreachable: service@localhost: ${c% *}"
	done
	unlogged "left: "
}

# Nor has anybody missed such a probe if the next thing asked for is the subscription.
# "A worker that does not answer while others do may only be late, so a second probe
# follows."
nobody_has_missed_a_probe_that_has_not_arrived() {
	scripted patience=3 refresh=5 b
	probed
	is_due
	hear srv "<presence type='subscribe'"
	probed
	presence_error "remote-server-not-found cancel" service@localhost "$(last_ask)"
	hear srv "<presence type='subscribe'"
	probed
	only_answer a
	probe_is_read
	unlogged "left: "
	only_answer a
	logged "left: service@localhost/b: 1 online"
}

# Nor if that is only said when it is over.
# "If an error says that the target's server cannot be reached, or cannot answer now, no
# worker is removed, and the server is asked again within refresh."
nobody_has_missed_a_probe_that_has_not_arrived_as_is_said_late() {
	scripted patience=3 refresh=5 b c
	probed
	only_answer a c
	probe_is_read
	only_answer a
	logged "left: service@localhost/b: 2 online"
	presence_error "remote-server-timeout wait" service@localhost "$(last_ask)"
	logged "unreachable: "
	probe_is_read
	only_answer a
	probe_is_read
	unlogged "left: service@localhost/c"
}

# Who has come back before the next one is asked by that as well.
# "A worker that does not answer while others do may only be late, so a second probe
# follows."
the_probe_after_one_that_has_not_arrived_counts() {
	for lost in probe subscribe; do
		scripted patience=3 refresh=5 b
		probed
		[ $lost = subscribe ] || only_answer a b
		[ $lost = probe ] || is_due
		hear srv "<presence type='$lost'"
		presence_error "remote-server-not-found cancel" service@localhost "$(last_ask)"
		logged "unreachable: "
		[ $lost = subscribe ] || is_due
		online a
		probe_is_read
		only_answer a
		probe_is_read
		only_answer a
		logged "left: service@localhost/b: 1 online"
	done
}

# The subscription is asked for as soon as if nothing had been said.
# "It is asked again, see refresh."
an_unreachable_target_is_asked_no_later() {
	scripted askmin=5 refresh=3600
	presence_error "remote-server-not-found cancel" service@localhost "$(last_ask)"
	logged "unreachable: "
	hear srv "<presence type='subscribe'"
}

presence_error() {
	deliver presence error "$2" proxy.localhost "id='$3'><error type='${1#* }'>
		<${1% *} xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></presence"
}

# "Memory is fixed at compile time."
memory_stays_bounded() {
	scripted
	from="type='error' from='u@h/r' to='proxy.localhost'"
	awk -v from="$from" 'BEGIN {
		for (i = 0; i < 1000000; i++)
			printf "<message %s><e%d a%d=\"\" xmlns:p%d=\"u\"/></message>", from, i, i, i
	}' >"$dir/srv.in"
	goes_on names
	large 6000000 "message $from" "" "" "text " >"$dir/srv.in"
	goes_on text
	large 4000000 "message $from" "" "" "<a/>" >"$dir/srv.in"
	goes_on elements
	awk 'BEGIN {
		for (i = 0; i < 5000; i++)
			printf "<presence from=\"service@localhost/%01000d\" to=\"proxy.localhost\"/>", i
	}' >"$dir/srv.in"
	goes_on resources
	logged "1024 online, which is the limit"
}

# "More are ignored until one leaves; this is logged once."
# "The resource is empty or too long, or, with and any more behind it, there is no place
# for it, see MAXRESOURCES."
# "Workers that are online at once."
full_table() {
	scripted MAXRESOURCES=3
	online b c d e
	logged "joined: service@localhost/c: 3 online"
	logged "ignored: service@localhost/d"
	each_gets_a_set a b c
	unsent "localhost/[de]'"
	logged_times 1 ignored
	leaves b
	online e f
	logged "joined: service@localhost/e: 3 online"
	logged "ignored: service@localhost/f"
	# nor is there a probe, or a request for the subscription, before that is granted
	news
	[ "$(grep -c "<presence" "$dir/old")" = 1 ]
}

# Those who have left without a word do not keep it full: who has no place in it
# says, too, that a probe is answered.
# "More are ignored until one leaves; this is logged once."
# "Then a probe finds who was ignored."
the_dead_do_not_fill_the_table() {
	scripted MAXRESOURCES=2 patience=3
	online b c
	logged "ignored: service@localhost/c"
	probed
	only_answer c
	probe_is_read
	only_answer c
	logged "left: service@localhost/b: 1 online"
	logged "left: service@localhost/a: 0 online"
	probe_is_read
	joins c
}

# "Then a probe finds who was ignored."
a_probe_follows_the_one_that_is_out() {
	scripted MAXRESOURCES=1 patience=3
	probed
	online b
	logged "ignored: service@localhost/b"
	leaves a
	is_due
	probe_is_read
	joins b
}

# However long his ids are, and from how many resources he comes.
# "A requester, by its bare JID, may hold as many as are left, so one who floods leaves
# half of them to others."
# "A request from somebody who has as many open as there are places left, see
# MAXREQUESTS."
# "If half of the requests are this requester's, it sends too many."
who_floods_leaves_half() {
	for n in 0 1000; do
		scripted stall=0
		x=$(bytes $n x)
		flood 1 3000 "${x}f"
		logged "busy: 2048 requests open, 2048 from x*\\(f1@h/r2049\\)\\?: refusing more"
		# answered, they are his again
		for i in 1 2 3; do
			passes a "${x}f1-$i" result "${x}f1@h/r$i"
		done
		goes_to a again set "${x}f1@h/r"
		flood 50 40 o
		flood 1 3000 "${x}g"
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
		counted ".* 2048 open"
		stop
	done
}

# "More are refused; this is logged, and again only after three quarters of the places
# have been free."
# "The workers answer more slowly than requests come, or not at all: run more of them, or
# faster ones."
a_full_table_is_logged_once() {
	scripted REQUESTSIZE=100
	fill a
	for i in 1 2; do
		request $i get v@h/r
		has_failed resource-constraint $i
	done
	answer_some a 1024
	fill o 1024
	request 3 get v@h/r
	has_failed resource-constraint 3
	logged_times 1 "busy: 4096 requests open, 0 from v@h/r: refusing more"
	answer_some a 4096
	counted ".* 1024 open"
	fill b 3072
	request 4 get v@h/r
	has_failed resource-constraint 4
	logged_times 2 "busy: 4096 requests open, 0 from v@h/r: refusing more"
}

# "With relay, what a worker asks somebody counts as this person's request."
what_the_client_asks_counts_as_the_users() {
	scripted relay=1 MAXREQUESTS=64
	news
	for i in $(seq 40); do
		own "$i" a
	done
	comes_times 32 "type='get' id='a/"
	[ "$(echo "$news" | grep -c -F "<resource-constraint")" = 8 ]
	logged "busy: 32 requests open, 32 from u@h/r: refusing more"
	own 1 a proxy.localhost/v@h/r
	hear srv "<iq type='get' id='a/1' from='proxy.localhost' to='v@h/r'/>"
	goes_to a 1 get w@h/r
}

# "At least as many that have been answered are remembered, so ..."
# "Places for open requests."
a_request_makes_room_when_it_fails() {
	scripted
	fill a
	leaves a
	joins b
	fill b
	answer_some b 4096
	is_late a a1-1 result a1@h/r
	fill c
	counted ".* 4096 recipient-unavailable.* 4096 open"
}

# "A get that is longer is not handed to another worker, see retry."
what_is_too_large_is_not_handed_on() {
	scripted REQUESTSIZE=200
	# with `>', `</iq>', addresses, id and four
	small=$(bytes $((200 - 1 - 5 - 5 - 15 - 1 - 4)) x)
	deliver iq get u@h/r proxy.localhost "id='1'>$small</iq"
	deliver iq get u@h/r proxy.localhost "id='2'>${small}x</iq"
	hear srv "id='2'" "to='service@localhost/a'>x*</iq>"
	joins b
	leaves a
	hear srv "id='1'" "to='service@localhost/b'>$small</iq>"
	has_failed recipient-unavailable 2
	unsent "id='2'.*localhost/b'"
}

# Though nothing more is read while there is no room, the end of the connection is seen.
# "client_proxy runs in the foreground, ... reconnects by itself when the connection is lost."
a_server_that_dies_before_it_reads() {
	gets_stuck
	end "$stall" 9
	logged "disconnected: "
	logged waiting
}

# What was read at once may come to more than there is room for.
# "While another stanza might not fit, nothing is read: the server waits."
what_has_been_read_waits_for_room() {
	decl="xmlns:a='$(bytes 900 u)'"
	scripted MAXSTANZA=4096 OUTSIZE=20480
	flood 10 100 f
	written_times 1000 "<iq type='set' id='f"
	unlogged disconnected
}

# "While another stanza might not fit, nothing is read: the server waits."
back_pressure() {
	gets_stuck
	before=$(switches)
	sleep 1
	[ $(($(switches) - before)) -lt 20 ]
	fits_in 12288
	kill -USR1 "$stall"
	await grep "20000 of 20000 in order" "$dir/stall"
}

# Each is handed out, refused or counted as dropped, and then all is well.
# "So once the server has read nothing for patience seconds, there is a jam: what it says
# is read all the same, and requests, answers and messages are refused with
# resource-constraint, until all that waits is written."
# "While the server reads nothing, errors and replies to presence may find no room, see
# OUTSIZE."
# "Any request or message that would be handed out in a jam, see OUTSIZE."
# "It hangs, or more is sent than it reads, see OUTSIZE."
# "When the server has read nothing for that long, what it sends is read all the same, see
# OUTSIZE."
a_server_that_waits_for_us_to_read() {
	peer jam "$cport" 20000 >"$dir/jam"
	await listening_only "$cport"
	proxy patience=4 MAXREQUESTS=50000
	await grep handed "$dir/jam"
	logged "jammed: the server has read nothing for 4 s"
	counted ".* dropped"
	dropped=$(grep counted: "$log" | tail -n 1 | sed 's/.* \([0-9]*\) dropped.*/\1/')
	read -r asked handed refused _ <"$dir/jam"
	[ "$refused" -gt 0 ]
	[ $((handed + refused + dropped)) = "$asked" ]
	unlogged disconnected
}

# One that reads, however slowly, is not.
# "A server that reads nothing for twice keepalive is left."
a_server_that_reads_slowly_stays() {
	large 15900000 "iq type='set' id='1' from='u@h/r' to='proxy.localhost'" "<q>" "</q>" >"$dir/large"
	reads_slowly 150000 "$dir/large"
	proxy keepalive=4 MAXSTANZA=16000000 OUTSIZE=16016384
	# what it is owed is not cut off
	written "</iq>"
}

# Pings have their room, however much there is to be read.
# "It is also the pause between pings of the component to itself that do not come back."
pings_find_room() {
	awk -v x="$(bytes 7000 x)" 'BEGIN {
		for (i = 1; i <= 1500; i++)
			printf "<iq type=\"set\" id=\"%d\" from=\"u@h/r\" to=\"proxy.localhost\"><q>%s</q></iq>", i, x
	}' >"$dir/many"
	reads_slowly 100000 "$dir/many"
	proxy patience=1 stall=1 MAXSTANZA=8192 OUTSIZE=30000
	written "id='1400'"
	[ "$(grep -o "<iq type='get' id='due" "$dir/srv.out" | wc -l)" -ge 4 ]
}

# What it says is no sign of life then.
# "A server that reads nothing for twice keepalive is left."
a_server_that_never_reads_is_left() {
	peer chatter "$cport"
	await listening_only "$cport"
	proxy patience=4 keepalive=8
	logged "jammed: the server has read nothing for 4 s"
	logged "disconnected: the server is silent"
}

# Of requests that are open, two alike of each, none is lost; what comes once more is
# late.
# "The requester also gets it in place of an answer that comes then."
answers_that_come_in_a_jam() {
	peer jam "$cport" 1 400 >"$dir/jam"
	await listening_only "$cport"
	proxy patience=4 MAXSTANZA=65536 OUTSIZE=81920
	await grep handed "$dir/jam"
	logged "jammed: the server has read nothing for 4 s"
	counted ".* 400 late, .* 0 dropped, .* 1 open"
	fares a ".* 400 answered"
	unlogged disconnected
}

# "But ejabberd reads nothing either while it waits to write."
ejabberd_and_we_do_not_wait_for_each_other() {
	need ejabberdctl ejabberd
	ejabberd
	proxy patience=5
	services a
	: >"$log"
	login user x
	x=$(bytes 100000 x)
	for i in $(seq 400); do
		printf %s "<iq type='get' id='f$i' to='proxy.localhost'><q>$x</q></iq>"
	done >"$dir/user.in"
	login other y
	# who asks in a jam is refused
	n=0
	until limit=50 served other "$n" a; do
		n=$((n + 1))
		[ $n -lt 20 ]
	done
	unlogged disconnected
}

# Errors that the out buffer has no room for wait their turn.
# "While another stanza might not fit, nothing is read: the server waits."
many_fail_at_once() {
	scripted OUTSIZE=550000
	awk -v x="$(bytes 400 x)" 'BEGIN {
		for (i = 0; i < 6000; i++) {
			if (i == 4000) {
				print "<presence type=\"unavailable\" from=\"service@localhost\" to=\"proxy.localhost\"/>"
				print "<presence from=\"service@localhost/b\" to=\"proxy.localhost\"/>"
			}
			printf "<iq type=\"set\" id=\"%d\" from=\"u%d@h/%s\" to=\"proxy.localhost\"/>", i, i % 1000, x
		}
	}' >"$dir/srv.in"
	written "id='5999'"
	written_times 4000 "<recipient-unavailable"
	stanzas <"$dir/srv.out" | sed -n "s/^<iq type='error' id='\([0-9]*\)'.*recipient-unavailable.*/\1/p" |
	    sort -n >"$dir/failed"
	seq 0 3999 | cmp - "$dir/failed"
	unlogged disconnected
}

# "Above, a fresh parser takes over, since a parser keeps every name it has seen."
a_fresh_parser_loses_nothing() {
	scripted PARSERSOFT=100000 MAXREQUESTS=50000
	awk 'BEGIN {
		for (i = 0; i < 20000; i++)
			printf "<iq type=\"get\" id=\"n%d\" from=\"u@h/r\" to=\"proxy.localhost\"><e%d a=\"b\">t</e%d></iq>", i, i, i
	}' >"$dir/srv.in"
	written "id='n19999'"
	stanzas <"$dir/srv.out" | sed -n "s|.*id='n\([0-9]*\)'.*><e\([0-9]*\) a='b'>t</e\2></iq>|\1 \2|p" >"$dir/ids"
	awk 'BEGIN { for (i = 0; i < 20000; i++) print i, i }' | cmp - "$dir/ids"
	unlogged disconnected
}

# "Above, the stream is closed with policy-violation and opened again."
a_stanza_that_is_too_costly_ends_the_stream() {
	scripted
	from="type='error' from='u@h/r' to='proxy.localhost'"
	for n in 1 2 3 4 5; do
		case $n in
		1) printf "<message a='"; bytes 40000000 xxxxxxxxxxxxxxxx ;;
		2) printf "<m"; bytes 20000000 xxxxxxxxxxxxxxxx ;;
		3) echo "<message $from>"; bytes 300000 "<a>" ;;
		4) echo "<message $from>"; names 8000000 "<%/>" ;;
		5) echo "<message"; names 8000000 " %=''" ;;
		esac 2>"$dir/err" >"$dir/srv.in" || :
		ends_with policy-violation
	done
}

# "No stanza that a client may send to Prosody or ejabberd, 262144 bytes of any kind,
# takes as much."
# "Prosody would close the connection to a component that wrote more."
ugly_stanzas_on_prosody() { ugly_stanzas prosody; }
ugly_stanzas_on_ejabberd() { need ejabberdctl ejabberd; ugly_stanzas ejabberd; }

# Stanzas as large and as odd as a client may send them.
ugly_stanzas() {
	"$1"
	proxy
	services a
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
	[ "$1" = ejabberd ] || ugly a "$(bytes 105000 "<a>")$(bytes 140000 "</a>")"
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

# It arrives up to six times as long.
# "No stanza that a client may send to Prosody or ejabberd, 262144 bytes of any ..."
escapes_are_few() {
	scripted
	for c in apos gt quot; do
		# with as much white space behind the tag
		n=$((261900 * (${#c} + 2)))
		large 0 "iq type='set' id='a$c' from='u@h/r' to='proxy.localhost'" "<q a='$(bytes $n "&$c;")'/>" >"$dir/srv.in"
		n=$((262144 * (${#c} + 2)))
		large $n "iq type='set' id='t$c' from='u@h/r' to='proxy.localhost'" "<q>" "</q>" "&$c;" >"$dir/srv.in"
		# forwarded, not refused
		written "id='a$c' from='proxy.localhost/u@h/r'"
		written "id='t$c' from='proxy.localhost/u@h/r'"
	done
	fits_in 8192
	unlogged disconnected
	for c in "'" '>' '"'; do
		[ "$(tr -cd "$c" <"$dir/srv.out" | wc -c)" -ge 524044 ]
	done
}

# "1024 bytes of prefixes declared in the header of the server's stream: the names of the
# attributes and their values, with one more for each."
# "With more, the stream is closed with policy-violation."
prefixes_of_the_stream_have_a_limit() {
	# xmlns:a, b, and one for each
	decl="xmlns:a='$(bytes 1015 u)'"
	scripted backoffmax=1
	request 1
	hear srv "<iq type='get' id='1' .*/a' xmlns:a='u*'/>"
	cut_off srv
	serve
	hear srv "<stream:stream"
	tell srv "<stream:stream id='1' xmlns='jabber:component:accept' xmlns:a='$(bytes 1016 u)'
		xmlns:stream='http://etherx.jabber.org/streams'>"
	hear srv "<policy-violation"
	logged "disconnected: the stream header is too large"
	# nor may what is missing be taken for that of another port
	serve
	hear srv "<stream:stream"
	tell srv "<stream:stream id='$(bytes 524300 i)' xmlns='jabber:component:accept'
		xmlns:stream='http://etherx.jabber.org/streams'>"
	hear srv "<policy-violation"
	logged_times 2 "disconnected: the stream header is too large"
	serve
	welcome
}

# "512 bytes of a line, and 99 of each address in it but the target's."
# "20 lines a second that anybody can cause, such as those about dropped stanzas."
# "The number of lines missing or cut is logged once there is room."
# "See LIMITS."
strangers_do_not_fill_the_log() {
	scripted
	before=$(wc -l <"$log")
	begun=$(milliseconds)
	awk -v x="$(bytes 3000 x)" 'BEGIN {
		for (i = 0; i < 5000; i++) {
			printf "<iq type=\"result\" id=\"1\" from=\"u@h/%s\" to=\"proxy.localhost/%s\"/>", x, x
			printf "<presence from=\"u@h/%s\" to=\"proxy.localhost\"/>", x
		}
	}' >"$dir/srv.in"
	goes_to a last
	logged "log: [0-9]* lines lost"
	said=$(($(wc -l <"$log") - before))
	# each second has one about those that are missing, too; one had begun before
	[ $said -le $((21 * (($(milliseconds) - begun) / 1000 + 2))) ]
	awk 'length($0) > 511 { exit 1 }' "$log"
	# each is there or counted as missing
	# shellcheck disable=SC2016 # fields of awk
	await awk '/: (dropped|ignored): / { n++ } /: log: / { n += $3 } END { exit n != 10000 }' "$log"
	logged "ignored: presence (no type) from u@h/x\{95\}: the target is service@localhost"
}

# "20 lines a second that anybody can cause, such as those about dropped stanzas."
twenty_lines_a_second_are_logged() {
	scripted
	tell srv "$(for i in $(seq 20); do
		printf %s "<iq type='result' id='$i' from='u@h/r' to='proxy.localhost'/>"
	done)"
	logged_times 20 "dropped: "
	works a 1
	stop
	unlogged "lines lost"
}

# There is no later second in which to do so.
# "The number of lines missing or cut is logged once there is room."
what_is_missing_is_told_at_the_end() {
	scripted
	tell srv "$(for i in $(seq 40); do
		printf %s "<iq type='result' id='$i' from='u@h/r' to='proxy.localhost'/>"
	done)"
	logged "dropped: "
	goes_to a 1
	stop
	logged "log: [0-9]* lines lost"
}

# There are more lines than a pipe or a terminal holds.
serves_whoever_reads_the_log() {
	seq 2000 | sed "s|.*|<presence from='service@localhost/&' to='proxy.localhost'/><presence type='unavailable' from='service@localhost/&' to='proxy.localhost'/>|" >"$dir/srv.in"
	online a
	goes_to a last
}

# A reader that comes late, and one that never comes.
# "Lines that the log does not take at once are lost, or cut short."
# "A pipe holds some 500 of these lines; those that come before it is read again are lost,
# see LIMITS."
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
		serves_whoever_reads_the_log
		[ $reader = none ] || {
			cat <&3 >"$dir/read" 3>&- &
			echo $! >>"$dir/pids"
			await grep "log: [0-9]* lines lost" "$dir/read"
		}
		stop
		hear srv "</stream:stream>"
	done
}

# A terminal, unlike a pipe, takes a part of a line when it has no room for the rest.
# "Lines that the log does not take at once are lost, or cut short."
a_terminal_that_nobody_reads() {
	configure
	serve
	background python3 -c '
import os, pty, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
master, slave = pty.openpty()
print(os.ttyname(slave), flush=True)
signal.sigwait([signal.SIGUSR1])
while True:
    os.write(1, os.read(master, 4096))' >"$dir/terminal"
	reader=$pid
	await [ -s "$dir/terminal" ]
	# shellcheck disable=SC2086 # a command and its options, or nothing
	background ${WRAPPER-} "$bin" 2>"$(cat "$dir/terminal")"
	proxypid=$pid
	welcome
	serves_whoever_reads_the_log
	kill -USR1 "$reader"
	await grep "^client_proxy: log: [0-9]* lines lost" "$dir/terminal"
	[ "$(grep -c "client_proxy: .*client_proxy: " "$dir/terminal")" = 0 ]
	stop
	hear srv "</stream:stream>"
}

# With a file that takes this many bytes more.
takes() { prlimit --pid "$proxypid" --fsize="$(($(wc -c <"$log") + $1)):unlimited"; }

# A line that lacks but its newline is all there; the next, of which only that is taken, is not.
# "Lines that the log does not take at once are lost, or cut short."
# "The number of lines missing or cut is logged once there is room."
a_log_that_has_room_for_all_but_a_newline() {
	plainly
	scripted
	line="client_proxy: joined: service@localhost/b: 2 online"
	takes ${#line}
	online b
	await grep "$line" "$log"
	takes 1
	online c
	goes_to "[abc]" 1
	takes 999
	joins d
	await grep "^client_proxy: log: 1 lines lost" "$log"
	grep -x "$line" "$log"
	[ "$(grep -c -v "^client_proxy: " "$log")" = 0 ]
}

# "Only the first 255 elements on its upper two levels are searched for what matters here,
# such as show, error conditions and chat states."
a_chat_state_behind_256_elements() {
	scripted relay=1
	leaves a
	for n in 255 256; do
		news
		message $n u@h/r proxy.localhost "<a><b>$(bytes 1200 "<c/>")</b></a>$(bytes $(((n - 3) * 4)) "<a/>")$composing"
		[ $n = 256 ] || comes ""
	done
	comes "$(error wait recipient-unavailable 256 proxy.localhost u@h/r message)"
}

# "1023 bytes of each part, as in RFC 7622."
# "A stanza to an address of the component with a longer node is dropped, and a longer
# resource of the target is ignored; both are logged."
names_of_1023_bytes() {
	scripted
	long=$(bytes 1023 x)
	online "$long"
	logged "joined: service@localhost/x\{99\}: 2 online"
	leaves a
	works "$long" 1
	deliver iq get u@h/r "$long@proxy.localhost"
	hear srv "from='$long@proxy.localhost/u@h/r'"
	online "1$long"
	logged "ignored: "
	deliver iq get u@h/r "1$long@proxy.localhost"
	logged "dropped: iq get from u@h/r to 1xxx"
	unsent "1$long"
}

# "Resident memory stays under 4 MB with few open requests and workers, under 12 MB with
# all that fit, and under 24 MB while a stanza is parsed that was made to be as costly as
# possible."
small_in_memory() {
	plainly
	scripted
	# so many that all places have been used
	exchanges 9000 n%d
	awk '/VmRSS/ { print; exit !($2 < 4096) }' "/proc/$proxypid/status"
	strip -o "$dir/stripped" "$bin"
	[ "$(wc -c <"$dir/stripped")" -lt 65536 ]
}

# "The requester is all that follows the first slash of from."
# "A worker in Python, with slixmpp, which accepts the subscription by itself:"
# "It ends with its connection: run it, too, under a supervisor that starts it again."
the_worker_of_the_man_page_answers() {
	library
	prosody
	proxy
	example WORKERS 1 >"$dir/worker.py"
	background /usr/bin/python3 "$TESTDIR/talk.py" "$c2s" "$log" example "$dir/worker.py" >"$dir/python" 2>&1
	worker=$pid
	logged "joined: service@localhost/a:"
	login user x
	tell user "<iq type='get' id='1' to='proxy.localhost'><hello xmlns='urn:example'/></iq>"
	hear user "<iq" "id='1'" "type='result'" ">Hello user@localhost/x</hello>"
	end "$serverpids"
	await gone "$worker"
}

# "Answer pings (XEP-0199), to show that the worker is busy and does not hang."
who_answers_pings_stays() {
	scripted stall=1
	goes_to a 1 set
	for i in 1 2 3 4; do
		is_pinged a
		deliver iq error service@localhost/a proxy.localhost "id='stall'/"
	done
	unlogged "stalled\|dropped"
	fares a "1 open, 1 handed out, 0 answered, 0 taken back, 0 timed out, 0 ms, up"
}

# "JIDs in the content are not translated."
addresses_in_the_content_stay() {
	scripted
	kept "" "><item jid='proxy.localhost'>u@h/r</item></iq>"
}

# "The target has to accept the subscription once; its server remembers."
# "A program answers with and broadcasts its own presence, like any client that wants to be
# seen."
subscription_is_approved_already() {
	prosody
	proxy
	services a
	stop
	proxy
	logged "joined: service@localhost/a: 1 online"
	login user x
	served user 1 a
	unheard a "subscribe"
}

# "A worker that sends it to the component alone is not found by probes, so it is soon
# taken to have left."
presence_to_the_component_alone_does_not_last() {
	prosody
	proxy refresh=4 patience=3
	services a
	login b b service
	tell b "<presence to='proxy.localhost'/>"
	logged "joined: service@localhost/b: 2 online"
	logged "left: service@localhost/b: 1 online"
}

# "Colons and upper case do not matter."
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
}

# "Up to eight fingerprints can stand there, separated by commas or spaces."
eight_fingerprints_and_not_nine() {
	TLS=front
	certificate server
	other=$(echo "$pin" | tr 0-9A-F 1-9A-F0)
	seven="$other $other $other,$other,$other $other $other"
	scripted tlspin="\"$seven $pin\""
	stop
	configure tlspin="\"$seven $other $pin\""
	brief
	[ $rc = 1 ]
	grep "tlspin: " "$dir/err"
}

# "To renew a certificate, add the fingerprint of the new one, restart client_proxy, then
# let the server use it."
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
	logged_times 2 "online: .* with TLS"
}

# Nor does a certificate that the server sends along.
# "Only the fingerprint is checked: not who signed the certificate, nor its names and
# dates."
who_signed_the_certificate_does_not_matter() {
	TLS=front
	certificate authority
	authority=$pin
	certificate server
	cat "$dir/authority.crt" >>"$dir/server.pem"
	front server
	openssl s_client -connect "127.0.0.1:$tport" -showcerts </dev/null >"$dir/chain" 2>/dev/null || :
	[ "$(grep -c BEGIN "$dir/chain")" = 2 ]
	scripted
	stop
	serve
	proxy tlspin="\"$authority\""
	logged "disconnected: the server's certificate is not in tlspin; its fingerprint is $pin$"
}

# "Only the fingerprint is checked: not who signed the certificate, nor its names and
# dates."
the_name_in_the_certificate_does_not_matter() {
	TLS=front
	scripted host='"localhost"'
	openssl x509 -noout -subject -in "$dir/server.pem" | grep "proxy.domain.example"
}

# "The protocol is TLS 1.2 with ECDHE and AES-GCM or ChaCha20-Poly1305, from the first
# byte on (not STARTTLS)."
tls_1_2_and_its_ciphers() {
	TLS=front
	certificate server
	for c in AES128-GCM-SHA256 AES256-GCM-SHA384 CHACHA20-POLY1305; do
		front server ",openssl-max-proto-version=TLS1.2,cipher=ECDHE-ECDSA-$c"
		scripted
		stop
		end "$frontpid"
	done
	front server ",openssl-max-proto-version=TLS1.2,cipher=ECDHE-ECDSA-AES128-SHA256"
	proxy
	logged "disconnected: TLS failed: BearSSL error $((256 + 40)) "
}

# "If host is a name, it is sent to the server (SNI)."
tls_name() {
	TLS=front
	for host in localhost 127.0.0.1 ::ffff:127.0.0.1; do
		front_of "OPEN:$dir/hello,creat,append" -u
		proxy host="\"$host\"" patience=1
		await test -s "$dir/hello"
		stop
		end "$frontpid"
		mv "$dir/hello" "$dir/hello.$host"
	done
	grep -c localhost "$dir/hello.localhost"
	! grep -c 127.0.0.1 "$dir/hello.127.0.0.1" "$dir/hello.::ffff:127.0.0.1"
}

# "Prosody speaks TLS to components on a port that services share."
# "Besides the component's lines it needs:"
a_week_on_prosody_with_tls() { TLS=own; week prosody; }

# "ejabberd, in the lines of the listener, where the file holds the key and the
# certificate:"
a_week_on_ejabberd_with_tls() { need ejabberdctl ejabberd; TLS=own; week ejabberd; }

# Its hosts, with the component's lines of the man page behind mod_client_proxy's.
jitsi_was_installed() {
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
	Component "focus.meet.example" "client_proxy"
		target_address = "focus@auth.meet.example"'
	component="example 'Jitsi Meet' 1"
}

# A guest asks for a conference, and this client of Jicofo's account answers.
meets() {
	[ -f "$dir/guest.out" ] || login guest '' '' meet.example
	conferences=$((${conferences-0} + 1))
	tell guest "<iq type='set' id='$conferences' to='focus.meet.example'>
		<conference xmlns='http://jitsi.org/protocol/focus' room='r@x'/></iq>"
	hear "$1" "<iq" "type='set'" "id='$conferences'" "from='focus.meet.example/$jid'" "room='r@x'" \
	    "<conference [^>]*xmlns='http://jitsi.org/protocol/focus'"
	tell "$1" "<iq type='result' id='$conferences' to='focus.meet.example/$jid'>
		<conference xmlns='http://jitsi.org/protocol/focus' ready='true'/></iq>"
	hear guest "<iq" "type='result'" "id='$conferences'" "from='focus.meet.example'" "ready='true'"
}

# The subscription in the roster is kept as Jitsi's installation made it, so nobody
# has to do anything. Somebody else has logged in to the account of the focus.
# "Where Prosody has replace it with the component of Prosody, set domain and target to the
# same, and restart Prosody: reloading its configuration is not enough."
# "The subscription in the target's roster stays valid."
# "Requesters see no difference."
# "Workers see one: bytes of a requester's JID that are not printable ASCII are %XX in
# from."
# "Its conference focus, Jicofo, is the worker."
# "For the installation meet.example, on Debian, set domain to focus.meet.example, target
# to focus@auth.meet.example, prefix to focus, so that nothing else that uses the account
# gets requests, and answertime to 60: the page waits for ever, and Jicofo may take half a
# minute."
# "Append to prosody.cfg.lua, after its last Include line,"
# "The later definition wins, and mod_client_proxy is not loaded."
jitsi_meet() {
	jitsi_was_installed
	prosody
	for who in focus other; do
		login $who $who focus auth.meet.example
		tell $who "<presence/>"
	done
	proxy domain='"focus.meet.example"' target='"focus@auth.meet.example"' prefix='"focus"' answertime=60
	logged "joined: focus@auth.meet.example/focus: 1 online"
	for _ in 1 2 3 4 5 6; do
		meets focus
	done
	unlogged "focus@auth.meet.example/other"
	unheard other "<iq.*conference"
	unheard focus "type='subscribe'"
}

# "Only one Jicofo may be at work."
# "With choice set to STANDBY a second one can wait, with another resource that has the
# same prefix."
# "One client_proxy serves both."
a_second_jicofo_waits() {
	jitsi_was_installed
	prosody
	proxy domain='"focus.meet.example"' target='"focus@auth.meet.example"' prefix='"focus"' choice=STANDBY
	for who in focus1 focus2; do
		login $who $who focus auth.meet.example
		tell $who "<presence/>"
		logged "joined: focus@auth.meet.example/$who:"
	done
	meets focus1
	cut_off focus1
	logged "in charge: focus@auth.meet.example/focus2"
	meets focus2
}

# The account to which the scripts change, which only root could do, is the one that
# runs the test.
# "A run script for runit, which restarts client_proxy should it ever end, and log/run for
# its log:"
runit_runs_it() {
	need runsv runit
	configure
	mkdir -p "$dir/bin" "$dir/service/log" "$dir/var"
	cp "$bin" "$dir/bin/client_proxy"
	cat >"$dir/bin/chpst" <<-\E
	#!/bin/sh
	[ "$1 $2" = "-u _client_proxy" ] || exit 1
	shift 2
	exec "$@"
	E
	printf '#!/bin/sh\necho "%s" >>%s/ended\n' \$1 "$dir" >"$dir/service/finish"
	example RUNNING 1 >"$dir/service/run"
	example RUNNING 2 | sed "s|/var/log/client_proxy|$dir/var|" >"$dir/service/log/run"
	chmod +x "$dir/bin/chpst" "$dir/service/finish" "$dir/service/run" "$dir/service/log/run"
	echo s2000 >"$dir/var/config"
	serve
	PATH=$dir/bin:$PATH background runsv "$dir/service"
	log=$dir/var/current
	welcome
	logged "client_proxy: online"
	kill -9 "$(cat "$dir/service/supervise/pid")"
	await gone "$(cat "$dir/srv.pid")"
	serve
	welcome
	logged_times 2 'client_proxy: online'
	for i in $(seq 60); do
		deliver iq result nobody@h/r proxy.localhost "id='$i'/"
	done
	await sh -c "ls '$dir/var' | grep '^@'"
	sv -v -w 5 down "$dir/service"
	# killed by a signal at first, then it ended well
	[ "$(tr '\n' ' ' <"$dir/ended")" = "-1 0 " ]
	cat "$dir"/var/@* "$log" | grep "stopping: signal"
	sv exit "$dir/service"
}

# "Prosody refuses a second component with the same address, with conflict."
# "So a second copy on another machine can stand by: it tries again, and takes over within
# backoffmax when the first one ends."
a_second_copy_stands_by() {
	prosody
	proxy backoffmax=2
	workers b
	login user x
	for i in 1 2; do
		first=$proxypid
		proxy backoffmax=2
		logged "disconnected: conflict"
		ask user before$i
		hear user "type='result'" "id='before$i'"
		end "$first" 9
		logged "joined: service@localhost/b: 1 online"
		ask user after$i
		hear user "type='result'" "id='after$i'"
	done
}

# "Set that to a few seconds, and do not set component_conflict_resolve to kick_old, or
# the two take the address from each other for ever."
# "If no other copy of it stands by, add component_conflict_resolve = "kick_old" to the
# component's lines: it lets client_proxy back in at once after its link was cut."
with_kick_old_copies_take_the_address_from_each_other() {
	more=$(sed -n 's/.*\(component_conflict_resolve = \)\\(dqkick_old.*/\1"kick_old"/p' client_proxy.1)
	prosody
	proxy backoffmax=1
	logged online
	first=$log
	proxy backoffmax=1
	logged online
	second=$log
	log=$first
	logged "disconnected: conflict"
	log=$second
	logged "disconnected: conflict"
}

# "ejabberd and jabberd2 accept both and spread stanzas over them, so that answers may
# come to the wrong one: run only one copy there."
# "A ping of the component to itself has gone elsewhere: another copy is connected, or the
# server still counts a connection that was cut, see A second copy."
ejabberd_accepts_both_copies() {
	need ejabberdctl ejabberd
	ejabberd
	proxy patience=3 refresh=4
	workers a
	first=$log
	proxy
	logged online
	unlogged disconnected
	log=$first
	logged "shared: proxy.localhost: another connection gets some of what is for it"
	unlogged disconnected
}

# "A ping of the component to itself has gone elsewhere: ..."
# "Logged once per connection."
a_ping_that_goes_elsewhere_is_logged_once() {
	scripted patience=1 stall=1
	goes_to a hung set
	hear srv "$ping"
	slow=$heard
	hear srv "$ping"
	tell srv "$slow$heard"
	works a 1
	unlogged shared
	for n in 1 2; do
		for _ in 1 2; do
			hear srv "$ping"
			is_due
			works a "$n"
		done
		logged_times "$n" "shared: proxy.localhost: another connection gets some of what is for it"
		reconnects
		joins a
		goes_to a hung set
	done
}

# "A connection that was cut unnoticed, as by a firewall, counts as another copy until the
# server notices."
a_cut_connection_counts_as_a_copy() {
	TLS=
	prosody
	cat >"$dir/link" <<-E
	#!/bin/sh
	echo \$\$ >>"$dir/pids"
	exec socat - TCP:127.0.0.1:$cport
	E
	chmod +x "$dir/link"
	front_of "EXEC:$dir/link"
	proxy keepalive=3 backoffmax=1 "port=\"$tport\""
	logged online
	link=$(tail -n 1 "$dir/pids")
	kill -STOP "$link"
	logged "disconnected: the server is silent"
	logged "disconnected: conflict"
	kill -9 "$link"
	logged_times 2 online
}

# The component on one node of a cluster, resources and requesters on both; then
# the other node dies.
# "In a cluster of two ejabberd nodes (measured), a component on one node serves
# requesters and workers on both."
# "When the other node dies, nothing says that its workers have gone: requests handed to
# them fail with service-unavailable until two probes are over, see refresh."
a_cluster_of_two_nodes() {
	need ejabberdctl ejabberd
	ERL_EPMD_PORT=$tport ERL_EPMD_ADDRESS=127.0.0.1
	export ERL_EPMD_PORT ERL_EPMD_ADDRESS
	background epmd
	await listening "$ERL_EPMD_PORT"
	ejabberd one
	one=$c2s
	died=$serverpids
	ports
	ejabberd two one
	proxy patience=2
	services a
	two=$c2s
	c2s=$one worker b
	worker c
	offline a
	asker "$one" user x proxy.localhost 500
	asker "$two" other y proxy.localhost 500
	askers_are_done
	for u in x y; do
		grep " 500 answered.* b [1-9].* c [1-9]" "$dir/asked.$u"
	done
	# nobody tells us of the resource that dies with its node
	end "$died" 9
	asker "$two" other z proxy.localhost 500
	askers_are_done
	grep "service-unavailable [1-9].* 0 twice" "$dir/asked.z"
	logged "left: service@localhost/b: 1 online"
	asker "$two" other z proxy.localhost 500
	askers_are_done
	grep " 500 answered" "$dir/asked.z"
}

# "Write what waits to be written, close the stream and exit, within a second."
# "0 after a signal or -v."
# "A signal told it to."
signals() {
	proxy
	logged waiting
	stops_soon
	serve
	proxy
	hear srv "<stream:stream"
	stops_soon
	hear srv "</stream:stream>"
	for sig in TERM INT HUP QUIT; do
		scripted
		stops_soon $sig
		hear srv "</stream:stream>"
		logged_times 1 "stopping: "
	done
	# a server that takes nothing
	scripted
	kill -STOP "$(cat "$dir/srv.pid")"
	stops_soon
}

# "Open requests get no error; their answers pass if the component is back by then."
open_requests_outlive_it() {
	scripted
	goes_to a 1
	stop
	unsent "type='error'"
	scripted
	passes a 1
}

# Half a second after the signal at the latest, that is; the rest is the machine's.
stops_soon() {
	begun=$(milliseconds)
	stop "$@"
	took=$(($(milliseconds) - begun))
	echo "ended after $took ms"
	case ${WRAPPER:+slow}${CFLAGS-} in slow* | *sanitize*) return ;; esac
	[ $took -lt 1900 ]
}

# "Write what waits to be written, ..."
what_waits_is_written_on_sigterm() {
	gets_stuck
	kill "$proxypid"
	kill -USR1 "$stall"
	await grep "in order, closed" "$dir/stall"
	await gone "$proxypid"
}

# "SIGHUP stays ignored if it was, as with nohup."
nohup_is_respected() {
	trap '' HUP
	scripted
	trap 'exit 1' HUP
	kill -HUP "$proxypid"
	works a 1
	unlogged stopping
}

# "Log one line of totals since the start, then one line for each worker that is online,
# see counted and resource in DIAGNOSTICS."
# "Since the start: requests handed out, those of them that are untracked, answers passed
# on, answers that came late or twice, messages passed on, errors by condition, stanzas
# dropped and successful handshakes; how many workers are online and requests open now;
# and bytes read and written."
counters() {
	scripted
	works a 1
	request 2 get u@h/r proxy.localhost/x
	request 3 get service@localhost/a
	request 4 get "u@h/$(bytes 1023 x)"
	deliver iq result nobody@h/r proxy.localhost/u@h/r
	written "type='error' id='4'"
	counted "1 requests, 0 untracked, 1 answers, 0 late, 0 messages, 1 service-unavailable, 1 feature-not-implemented, 1 not-acceptable, 0 policy-violation, 0 resource-constraint, 0 recipient-unavailable, 0 remote-server-timeout, 0 bad-request, 1 dropped, 1 connections, 1 online, 0 open, [0-9]* bytes in, $(wc -c <"$dir/srv.out") bytes out"
	in=$(sed -n 's/.* open, \([0-9]*\) bytes in.*/\1/p' "$log" | tail -n 1)
	tell srv "$(bytes 100 " ")"
	counted ".* $((in + 100)) bytes in"
	goes_to a 5
	goes_to a 6
	counted "3 requests, .* 1 online, 2 open"
}

# "Once it has begun to connect, client_proxy never exits by itself."
a_report_while_the_host_is_looked_up() {
	plainly
	cc -shared -fPIC -o "$dir/signalled.so" -x c - -ldl <<-\E
	#define _GNU_SOURCE
	#include <dlfcn.h>
	#include <netdb.h>
	#include <signal.h>
	int
	getaddrinfo(const char *host, const char *port, const struct addrinfo *hints, struct addrinfo **found)
	{
		raise(SIGUSR1);
		return ((__typeof__(getaddrinfo) *)dlsym(RTLD_NEXT, "getaddrinfo"))(host, port, hints, found);
	}
	E
	LD_PRELOAD=$dir/signalled.so proxy
	logged waiting
	logged "counted: "
}

# "Log one line of totals since the start, then one line for each worker that is online, ..."
a_signal_has_one_report() {
	scripted
	kill -USR1 "$proxypid"
	logged "counted: "
	works a 1
	works a 2
	logged_times 1 "counted: "
}

# "Once it has begun to connect, client_proxy never exits by itself."
cut_connections() {
	scripted backoffmax=1
	tell srv "<iq type='get' from='u@h/r' to='proxy.loc"
	end "$(cat "$dir/srv.pid")" 9
	logged "disconnected: "
	serve
	welcome
	tell srv "</stream:stream>"
	logged "disconnected: the server has closed the stream"
	hear srv "</stream:stream>"
	for i in 1 2 3; do
		serve
		welcome
		tell srv "$(bytes 200000 "<iq type='get' id='x' from='u@h/r' to='proxy.localhost'/>")"
		end "$(cat "$dir/srv.pid")" 9
	done
	serve
	welcome
	unlogged TLS
}

# "Once it has begun to connect, client_proxy never exits by itself."
without_descriptors() {
	serve
	configure
	# shellcheck disable=SC2086 # a command and its options, or nothing
	${WRAPPER-} "$bin" <&- >&- 2>&- &
	proxypid=$!
	echo $proxypid >>"$dir/pids"
	welcome
	for fd in 0 1 2; do
		[ "$(readlink "/proc/$proxypid/fd/$fd")" = /dev/null ]
	done
}

# "Once it has begun to connect, client_proxy never exits by itself."
a_log_that_is_closed() {
	serve
	configure
	mkfifo "$dir/pipe"
	head -n 1 <"$dir/pipe" >"$dir/head" &
	# shellcheck disable=SC2086
	background ${WRAPPER-} "$bin" 2>"$dir/pipe"
	proxypid=$pid
	welcome
	online a b c
	request 1
	hear srv "to='service@localhost/[abc]'"
}

# "Once it has begun to connect, client_proxy never exits by itself."
a_log_that_must_not_grow() {
	serve
	configure
	# shellcheck disable=SC2016,SC2086 # not for this shell; a command and its options
	background sh -c 'ulimit -f 0 && exec "$@"' sh ${WRAPPER-} "$bin" 2>"$dir/limited"
	proxypid=$pid
	welcome
	online a
	request 1
	hear srv "to='service@localhost/a'"
}

# "Bytes other than printable ASCII appear as %XX."
# "Each line reads client_proxy: what: why."
# "The connection has ended."
refusals_are_logged() {
	serve
	proxy
	hear srv "<stream:stream"
	tell srv "<stream:stream id='x' xmlns='jabber:component:accept'
		xmlns:stream='http://etherx.jabber.org/streams'>
		<stream:error><not-authorized xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>
		<text a='&gt;' xmlns='urn:ietf:params:xml:ns:xmpp-streams'>&gt;Not
		today€</text></stream:error></stream:stream>"
	logged "^client_proxy: disconnected: not-authorized: >Not%0A.*today%E2%82%AC$"
	unlogged "$(sha1 xsecret)"
	serve
	hear srv "<stream:stream"
	tell srv "<stream:stream id='x' xmlns='jabber:component:accept'
		xmlns:stream='http://etherx.jabber.org/streams'><stream:error>
		<conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>
		<text xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>"
	logged "^client_proxy: disconnected: conflict$"
}

# "The target is asked to accept the subscription."
# "If subscribed never follows, nobody has accepted it, or target is not an account there."
nobody_accepts_the_subscription() {
	prosody
	proxy askmin=1 target='"nobody@localhost"'
	for _ in first again; do
		logged "subscribing: nobody@localhost"
		unlogged "subscribed: "
		: >"$log"
	done
}

# Only an error, for the account itself, says so.
# "The target refuses or has withdrawn the subscription, or its server says why there is ..."
what_is_no_denial() {
	scripted
	probed
	id="id='$(last_ask)'"
	tell srv "<presence $id from='service@localhost' to='proxy.localhost'/>"
	tell srv "<presence type='error' $id from='service@localhost/a' to='proxy.localhost'>
		<error type='cancel'><gone xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></presence>"
	works a 1
	unlogged "not subscribed"
	tell srv "<presence type='error' $id from='service@localhost' to='proxy.localhost'/>"
	logged "not subscribed: service@localhost: no condition given"
}

# What follows the error is not of it.
# "The target's server cannot be reached, or cannot answer now; why is what the error
# says."
a_wait_beside_the_error() {
	scripted
	probed
	tell srv "<presence type='error' id='$(last_ask)' from='service@localhost' to='proxy.localhost'>
		<error type='cancel'/><x xmlns='x' type='wait'/></presence>"
	logged "not subscribed: service@localhost: no condition given"
	probed
	tell srv "<presence type='error' id='$(last_ask)' from='service@localhost' to='proxy.localhost'>
		<error type='wait'/></presence>"
	logged "unreachable: service@localhost: no condition given"
}

# "The target has accepted the subscription."
# "The target refuses or has withdrawn the subscription, or its server says why there is
# none."
# "It is asked again, see askmin."
the_target_denies() {
	scripted askmin=1
	for how in error unsubscribed; do
		unlogged "subscribed: service@localhost"
		goes_to a $how
		probed
		logged "^client_proxy: subscribed: service@localhost"
		if [ $how = error ]; then
			presence_error "gone cancel" service@localhost "$(last_ask)"
			logged "not subscribed: service@localhost: gone"
		else
			deliver presence unsubscribed service@localhost/x proxy.localhost /
			logged "not subscribed: service@localhost: subscription refused"
		fi
		logged "left: service@localhost, all.*: 0 online"
		has_failed recipient-unavailable $how
		hear srv "<presence type='subscribe'"
		: >"$log"
		joins a
	done
}

# "A stanza that nothing can be done with, such as an answer that nobody has asked for."
not_for_us() {
	scripted
	news
	for t in proxy.localhostx xproxy.localhost other.localhost a@b@proxy.localhost \
	    @proxy.localhost room@other.localhost/x proxy.localhost/ ''; do
		deliver iq get u@h/r "$t"
		logged "dropped: iq get from u@h/r to $t:"
	done
	tell srv "<iq type='get' id='1' from='u@h/r'/>"
	logged "dropped: iq get from u@h/r to (none)"
	tell srv "<iq type='get' id='1' to='proxy.localhost'/>"
	logged "dropped: iq get from (none)"
	tell srv "<iq xmlns='urn:x' type='get' id='1' from='u@h/r' to='proxy.localhost'/>"
	logged "not a stanza"
	tell srv "<other from='u@h/r' to='proxy.localhost'/>"
	logged "dropped: other"
	comes ""
	for ns in jabber:server jabber:client; do
		tell srv "<iq xmlns='$ns' type='get' id='$ns' from='u@h/r' to='proxy.localhost'><q xmlns='$ns'/></iq>"
		hear srv "<iq type='get' id='$ns' from='proxy.localhost/u@h/r' to='service@localhost/a'><q xmlns='$ns'/>"
	done
}

# "With TLS, the server's certificate is not in tlspin; its fingerprint is... ends with a fingerprint:
# compare it with the server's, then copy it to tlspin."
a_wrong_certificate_is_refused() {
	TLS=front
	certificate other
	other=$pin
	certificate server
	serve
	proxy tlspin="\"$other\""
	logged "disconnected: the server's certificate is not in tlspin; its fingerprint is $pin$"
	[ ! -s "$dir/srv.out" ]
}

# "the server does not speak TLS 1.2 means a port without TLS, or a server with TLS 1.3
# only."
a_server_without_tls_1_2() {
	TLS=front
	certificate server
	printf '%s\n' '#!/bin/sh' "echo \"<stream:stream id='1'><stream:error>\"" "head -c 20 >/dev/null" >"$dir/plain"
	chmod +x "$dir/plain"
	front_of "EXEC:$dir/plain"
	proxy backoffmax=1
	logged "disconnected: the server does not speak TLS 1.2"
	stop
	end "$frontpid"
	front server ",openssl-min-proto-version=TLS1.3"
	proxy backoffmax=1
	logged "disconnected: the server does not speak TLS 1.2"
}

# "connection cut without a TLS close means that it ended without a TLS alert, as
# when a server is killed."
tls_cut() {
	TLS=front
	scripted
	kill -9 "$(tr -d ' ' <"/proc/$frontpid/task/$frontpid/children")"
	logged "disconnected: connection cut without a TLS close"
	end "$frontpid"
	front_of "SYSTEM:head -c 9 >/dev/null"
	logged_times 2 "disconnected: connection cut without a TLS close"
}

# The server says all at once: many requests, that nobody is there any more, and that
# this is the end. What is to be written then can go nowhere.
# "client_proxy runs in the foreground, ... and reconnects by itself when the connection is
# lost."
tls_that_ends_while_many_fail() {
	awk -v head="<stream:stream id='1' xmlns='jabber:component:accept' xmlns:stream='http://etherx.jabber.org/streams'><handshake/>" 'BEGIN {
		printf "%s<presence type=\"subscribed\" from=\"service@localhost\" to=\"proxy.localhost\"/>", head
		printf "<presence from=\"service@localhost/a\" to=\"proxy.localhost\"/>"
		for (i = 0; i < 3000; i++)
			printf "<iq type=\"set\" id=\"%d\" from=\"u%d@h/r\" to=\"proxy.localhost\"/>", i, i % 1000
		printf "<presence type=\"unavailable\" from=\"service@localhost/a\" to=\"proxy.localhost\"/>"
	}' >"$dir/all"
	background socat -t 60 "TCP-LISTEN:$cport,bind=127.0.0.1,reuseaddr" "OPEN:$dir/all!!OPEN:/dev/null"
	await listening_only "$cport"
	TLS=front proxy OUTSIZE=540672
	logged "left: service@localhost/a"
	logged "disconnected: the server has closed the connection"
}

# "Its requests that are open, were handed to it, answered, taken back because it was
# stalled or seemed to have gone, and not answered in time; the mean time of its answers in
# milliseconds; whether it is up, draining or stalled; and with STANDBY, whether it is in
# charge."
# "They are counted since it joined."
how_each_resource_fares() {
	scripted
	begun=$(milliseconds)
	goes_to a 1
	sleep 1
	passes a 1
	fares a "0 open, 1 handed out, 1 answered, 0 taken back, 0 timed out, [0-9]* ms, up$"
	answers_took 1
	for i in 2 3 4 5; do
		goes_to a $i set
		passes a $i error
	done
	goes_to a 6
	shows a dnd
	fares a "1 open, 6 handed out, 5 answered, 0 taken back, 0 timed out, [0-9]* ms, draining$"
	answers_took 5
	leaves a
	joins a
	fares a "0 open, 0 handed out, 0 answered, 0 taken back, 0 timed out, 0 ms, up$"
	joins b
	fares b "0 open, 0 handed out, 0 answered, 0 taken back, 0 timed out, 0 ms, up$"
	stop
	scripted choice=STANDBY
	joins b
	fares a ".* ms, up, in charge$"
	fares b ".* ms, up$"
	shows a dnd
	logged "in charge: service@localhost/b"
	fares a ".* ms, draining$"
	fares b ".* ms, up, in charge$"
}

# So many answers, the first of which has taken a second, have taken the mean time that
# was reported last: all together no longer than since they began.
answers_took() {
	ms=$(sed -n 's/.* timed out, \([0-9]*\) ms, .*/\1/p' "$log" | tail -n 1)
	[ $((ms * $1)) -gt $((1000 - $1)) ]
	[ $((ms * $1)) -le $(($(milliseconds) - begun)) ]
}

# "XEP-0114 (Jabber Component Protocol), ..."
handshake_with_any_id() {
	serve
	proxy
	hear srv "<stream:stream"
	tell srv "<?xml version='1.0'?><stream:stream id='a&amp;b&lt;&quot;é🙂 '
		xmlns='jabber:component:accept' xmlns:stream='http://etherx.jabber.org/streams'>
		<stream:features/>"
	hear srv "<handshake>$(sha1 'a&b<"é🙂 secret')</handshake>"
	tell srv "<handshake/>"
	logged online
	joins a
	unlogged dropped
}

# "..., RFC 6120 (XMPP Core), ..."
nothing_is_done_behind_the_end() {
	scripted
	tell srv "<!-- no --><iq type='get' id='behind' from='u@h/r' to='proxy.localhost'/>"
	hear srv "</stream:stream>"
	unsent "id='behind'"
}

# Its last stanza has been handled, once.
# "..., RFC 6120 (XMPP Core), ..."
the_end_of_the_stream_is_no_stanza() {
	scripted
	goes_to a 1
	tell srv "</stream:stream>"
	hear srv "</stream:stream>"
	[ "$(grep -o "id='1'" "$dir/srv.out" | wc -l)" = 1 ]
}

# "..., RFC 6120 (XMPP Core), ..."
forbidden_xml() {
	scripted backoffmax=1
	for bad in '<!-- no -->' '<?no no?>' '<a><!--x--></a>' '<a><?x y?></a>' '<?a?>' '<!DOCTYPE a>' \
	    '<a><!DOCTYPE a [<!ENTITY b "c">]></a>' '<?xmlé d?>'; do
		tell srv "$bad"
		ends_with restricted-xml
	done
	for bad in '<?xml version="1.0"?>' '<!ELEMENT a>' '</a>' '<iq' '<a b=c/>' '<a>&nbsp;</a>' '<a b="1" b="2"/>' '<a>&#0;</a>' '<a>&#xFFFE;</a>' \
	    '<a><b></a>' "$(printf '<a>\300\257</a>')" "$(printf '<a>\377</a>')" "$(printf '<a>\355\240\200</a>')" '<a b="<"/>'; do
		tell srv "$bad<x>"
		ends_with not-well-formed
	done
}

# "XEP-0114 (Jabber Component Protocol), ... RFC 6120 (XMPP Core), ..."
wrong_streams() {
	ns="xmlns='jabber:component:accept' xmlns:stream='http://etherx.jabber.org/streams'"
	serve
	proxy backoffmax=1
	for c in "bad-format <stream:stream $ns>" "bad-format <stream $ns id='1'>" \
	    "bad-format <html id='1'>" \
	    "invalid-namespace <stream:stream id='1' xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>" \
	    "invalid-namespace <stream:stream id='1' xmlns='jabber:component:accept' xmlns:stream='urn:x'>" \
	    "invalid-namespace <stream:stream id='1'>" \
	    "bad-format <stream:stream $ns id='1'><iq/>" \
	    "bad-format <stream:stream $ns id='1'><presence from='a@b/c' to='proxy.localhost'/>" \
	    "restricted-xml <!DOCTYPE stream:stream><stream:stream $ns>" \
	    "restricted-xml <?xml-stylesheet href='x'?><stream:stream $ns>" \
	    "restricted-xml <?abc d?><stream:stream $ns>" \
	    "restricted-xml <?xmlé d?><stream:stream $ns>" \
	    "not-well-formed HTTP/1.1 400 Bad Request <>"; do
		hear srv "<stream:stream"
		tell srv "${c#* }"
		hear srv "<${c%% *} xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>"
		serve
	done
	logged "disconnected: not a component port"
}

# "No core is dumped, and neither secret nor handshake is logged."
no_core_is_dumped() {
	# shellcheck disable=SC3045 # shells have -c and -H
	ulimit -c "$(ulimit -H -c)"
	scripted
	grep "^Max core file size *0 " "/proc/$proxypid/limits"
	unlogged "$(sha1 s1secret)"
	unlogged secret
}

# "With relay anybody may also send them messages, and answers that they have not asked
# for, and whomever a worker asks sees the name of its resource in the id."
unasked_answers_reach_the_client() {
	scripted relay=1
	own_reply a/unasked
	hear srv "<iq type='result' id='unasked' from='proxy.localhost/u@h/r' to='service@localhost/a'/>"
}

# "A worker can trust the address behind the first slash of from as far as it trusts the
# server, since nobody else can send from the domain."
nobody_else_sends_from_the_domain() {
	scripted
	news
	all "request 1 get" proxy.localhost/v@h/r room@proxy.localhost proxy.localhost
	news
	unsent "v@h/r'.*to='service@localhost\|proxy.localhost/proxy.localhost.*to='service@localhost"
}

# ---- the specification: what README promises ----

# "A stanza that comes alone goes out in the same turn of the loop."
a_request_takes_one_turn() {
	need strace strace
	plainly
	one_request
	cat "$dir/turn"
	[ "$(sed 's/(.*//' "$dir/turn" | tr '\n' ' ')" = "poll read write poll " ]
	grep -q "^read.*<iq type='get' from='u@h/r'.*id='last'" "$dir/turn"
	grep -q "^write.*<iq type='get' id='last'.*</iq>" "$dir/turn"
}

# Nothing else in the tests would see the program become slower.
# "Little more than parsing the XML."
costs_little_more_than_parsing() {
	need valgrind valgrind
	plainly
	configure
	build_load
	for p in exchanges=140 answers=140 texts=120 elements=140 unwell=140; do
		count_instructions "${p%=*}"
		[ $((cost * 100)) -lt $((floor * ${p#*=})) ]
	done
}

# A large attribute costs about the same in however many pieces it arrives.
# "Little more than parsing the XML."
pieces_cost_little() {
	need valgrind valgrind
	plainly
	configure
	build_load
	large 0 "iq type='get' id='1' from='u@h/r' to='proxy.localhost'" "<q a='$(bytes 500000 x)'/>" >"$dir/large"
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
		serve_load "$dir/large" 1 1 1 "$cport" env LD_PRELOAD="$dir/short.$size.so" \
		    valgrind -q --tool=callgrind --callgrind-out-file="$dir/cost.$size" "$bin" \
		    2>"$dir/log" >"$dir/lost"
		grep -q " 0$" "$dir/lost"
	done
	small=$(sed -n 's/^summary: //p' "$dir/cost.64")
	large=$(sed -n 's/^summary: //p' "$dir/cost.100000")
	echo "$small instructions in pieces of 64 bytes, $large in large ones"
	[ "$small" -lt $((20 * large)) ]
}

# "A C99 compiler, make, expat and BearSSL."
compiles_without_a_warning() {
	for c in gcc clang; do
		for o in -O0 -O2; do
			configure
			make -C "$dir/build" clean
			make -C "$dir/build" CC=$c CFLAGS="$o -Werror"
		done
	done
}

# "The man page says how for Prosody, ejabberd, jabberd2 and Openfire, and what a worker
# needs to know"
documents_and_scripts_are_clean() {
	mandoc -Tlint client_proxy.1 | tee "$dir/lint"
	[ ! -s "$dir/lint" ]
	shellcheck -s sh test.sh
	coverage
	# every function of the specification is a test or called by one
	tests >"$dir/tests"
	sed -n '/^# ---- the specification/,/^# ---- helpers/s/^\([a-z0-9_]*\)() {.*/\1/p' test.sh |
	    grep -vxf "$dir/tests" >"$dir/called"
	while read -r f; do
		[ "$(grep -cw "$f" test.sh)" -gt 1 ] || { echo "nobody calls $f"; return 1; }
	done <"$dir/called"
	# every setting is in the man page
	sed -n 's/^static const [^=]*[ *]\([a-z]*\)\(\[]\)\{0,1\} *=.*/\1/p;s/^	\([A-Z]*\) *=.*/\1/p' config.def.h >"$dir/settings"
	[ "$(wc -l <"$dir/settings")" -gt 10 ]
	while read -r s; do
		grep -q "^\\.It [A-Z][a-z] $s" client_proxy.1 || { echo "no $s"; return 1; }
	done <"$dir/settings"
}

# What no test can prove: what words mean, advice, and what others do.
: <<\END # untested
For services that keep state between requests: commands and forms of several steps,
	paging through results, bytestreams.
It may be on another server.
So a service can be written as an ordinary client, run in several copies on several
	machines, and be reached at one address.
Its settings are compiled in, see CONFIGURATION.
There are exceptions:
stanza comes in goes out
The setting choice says which worker gets a request:
For stateless services.
For services that must be in one place.
Edit it and run make again.
The component's address, as the server knows it, in lower case.
The bare JID of the workers, account@domain, in lower case.
The server's port for components.
RANDOM, STICKY, LEASTBUSY or STANDBY, see CHOICE.
1: messages pass, and workers can send requests, see Messages and requests from workers.
Set it to well under half of answertime, or requests time out first.
Bytes that are kept of a request: its addresses and id, the rest of it, and one for each
	of the four.
A get that crashes its worker crashes another, too: 0 confines it to one.
Bytes that wait for the server to read them.
Bytes that are read at once.
Bytes that the XML parser may hold between two stanzas.
Bytes that the XML parser may hold at all.
What the author of a worker needs to know:
Split there before anything else looks at it.
Libraries that look for an @ first, such as gloox, cannot answer
	proxy.domain.example/user@domain.example/abc; they can if requests go to an address
	with a node, such as svc@proxy.domain.example.
Answer every request, unknown ones with service-unavailable: clients send disco#info by
	themselves.
Many libraries do, some only if told to.
Even without stream management, a machine that vanishes is noticed only when TCP gives up.
What lists addresses, such as the items of commands (XEP-0050), has to name the
	component's: all that precedes the first slash of from.
Most libraries of requesters give up after 15 to 30 seconds.
An answertime beyond that serves those that wait longer.
Most clients ask their user.
Components connect to port 5347 on the loopback addresses, which component_ports and
	component_interfaces change.
When that time is over, or the worker logs in anew, what ejabberd still holds for it fails
	with service-unavailable, and is not handed on.
In Debian's configuration a client may send 10 kB a second, and what a worker sends
	beyond that waits: put the target into unlimited_jids.
By default an account may have ten sessions, and each may send 3000 bytes a second: for
	more, add rules for the target to max_user_sessions and c2s_shaper below shaper_rules.
The router accepts any domain from whoever knows the secret.
Not tried: in the administration console, below External Components, enable the service
	on port 5275 and set the shared secret or one for domain; or set the properties
	xmpp.component.socket.active, xmpp.component.socket.port and
	xmpp.component.defaultSecret.
In front of any other server, stunnel:
Leave conf.avail/meet.example.cfg.lua alone: each upgrade puts mod_client_proxy back
	into it.
Nothing changes in Jicofo.
The subscription should be in the roster already; if it is not, puts it there, and
	Jicofo has to log in again.
In Docker, GLOBAL_CONFIG needs
Jicofo uses stream management, so Prosody keeps a dead one online for ten minutes: set
	smacks_hibernation_time = 15 for auth.meet.example.
One difference remains: mod_client_proxy passes JIDs as they are, and Jicofo does not
	decode %XX.
It answers users whose JIDs are not ASCII all the same, but one who has logged in with
	such a JID, and is in the room, does not become its moderator.
No privilege is needed.
Use an account, here _client_proxy, that owns the log's directory and nothing else.
If the first copy's machine vanishes, the second takes over only when Prosody notices
	that the connection is dead.
Measured with ./test.sh bench, for requests of a client that a worker answers, with
	everything on one machine: Prosody 0.12 and 13.0 used some fifty times the processor
	time of client_proxy, and ejabberd 23.01 and 24.12 six to ten times.
Alone, client_proxy takes about one and a half times the processor time of parsing the
	same XML.
So the server's component connection is the limit long before client_proxy is.
If one server is not enough (advice, not measured):
Spread the workers over many machines; their work is the larger part.
Use a server that can be a cluster, such as ejabberd or MongooseIM: requesters and
	workers are spread over its nodes, and the component is on one.
Use several addresses, each with a copy and perhaps a server of its own.
When the component's own node dies, it has to connect to another: set host to a name
	that has the addresses of all nodes.
If it is always the same resource, it hangs.
See backoffmax.
Anybody who may send to the domain may send requests to the workers, with any content;
	what to do with them is for the workers to decide.
Whoever can log in to the target's account gets a share of the requests.
... or if the system refuses what is needed at the start, such as random numbers.
XEP-0114 (Jabber Component Protocol), XEP-0199 (XMPP Ping), RFC 6120 (XMPP Core), RFC
	6121 (XMPP Instant Messaging and Presence), RFC 7622 (XMPP Address Format), RFC 5246
	(TLS 1.2).
END

# ---- helpers: processes ----

# Try a command until it succeeds, for half a minute, or $limit twentieths of a second:
# at first as often as that, after a second each fifth.
try() {
	waited=0
	until "$@"; do
		[ $waited -lt "${limit:-600}" ] || return 1
		if [ $waited -lt 20 ]; then
			sleep 0.05
			waited=$((waited + 1))
		else
			sleep 0.2
			waited=$((waited + 4))
		fi
	done
}

# Run a command that reads a file, but not again before that has been written to.
# shellcheck disable=SC3013 # shells have -nt
grown() {
	[ "$waited" = 0 ] || [ ! "$dir/looked" -nt "$1" ] || return 1
	: >"$dir/looked"
	shift
	"$@"
}

# Wait until a command succeeds.
await() { try "$@" >/dev/null 2>&1 || { echo "waited in vain for: $*"; return 1; }; }

# Skip the test without a command, which is in this Debian package.
need() { command -v "$1" >/dev/null || { echo "needs the package $2"; exit 77; }; }

# Skip it where time, memory and system calls are not the program's own.
plainly() {
	case ${CFLAGS-}${WRAPPER-} in
	*sanitize* | *valgrind* | *qemu*) echo "of no use with sanitizers"; exit 77 ;;
	-O0) unset CFLAGS ;; # it is measured as it is installed
	esac
}

# The same with each of the rest.
all() {
	same=$1
	shift
	for one in "$@"; do
		$same "$one"
	done
}

milliseconds() { echo $(($(date +%s%N) / 1000000)); }

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
	for sig in CONT TERM 9; do
		n=100
		while read -r p; do
			kill -$sig "$p"
			until [ $sig != TERM ] || [ $n = 0 ] || gone "$p"; do
				sleep 0.02
				n=$((n - 1))
			done
		done <"$dir/pids" 2>/dev/null
	done
	rm -f "$dir/pids"
}

listening() { socat -u OPEN:/dev/null "TCP:127.0.0.1:$1,connect-timeout=1"; }

# The port is bound; to connect would use up the one connection.
listening_only() {
	grep -q ":$(printf %04X "$1") 0*:0000 0A" /proc/net/tcp /proc/net/tcp6
}

# It is, or has its one connection already.
taken() {
	grep -q ":$(printf %04X "$1") [0-9A-F]*:[0-9A-F]* 0[1A] " /proc/net/tcp /proc/net/tcp6
}

# Nobody listens at this port and the two above it.
are_free() {
	! listening_only "$1" && ! listening_only $(($1 + 1)) && ! listening_only $(($1 + 2))
}

# Three ports that nobody listens at and nobody else here has: $c2s for clients, $cport
# for components, $tport for components over TLS.
ports() {
	for _ in 0 1 2 3 4 5 6 7 8 9; do
		first=$(($(od -An -N2 -tu2 /dev/urandom) % 4000 * 3 + 20000))
		if mkdir "$TESTDIR/ports.$first" 2>/dev/null && are_free $first; then
			c2s=$first cport=$((first + 1)) tport=$((first + 2))
			export c2s cport tport
			return
		fi
	done
	echo "no free ports"
	exit 1
}

# A fresh directory of this name and ports of its own, for what runs next. Who has
# ports keeps them while they are free: then what was built for them serves again.
place() {
	dir=$TESTDIR/$1
	rm -rf "$dir"
	mkdir "$dir"
	export dir
	[ "${c2s-}" ] || ports
	are_free "$c2s" || ports
}

# Stop at the first failure and end whatever was started.
guard() {
	set -e
	trap cleanup EXIT
	trap 'exit 1' HUP INT TERM
}

# Take a program out of this file, into $TESTDIR.
program() {
	[ ! -f "$TESTDIR/$1" ] || return 0
	sed -n "/^: <<.* # $1\$/,/^END\$/p" test.sh | sed '1d;$d' >"$dir/program"
	mv "$dir/program" "$TESTDIR/$1"
}

# ---- helpers: what is tested ----

# Build client_proxy with settings NAME=VALUE in config.h; the binary is $bin.
configure() {
	rm -rf "$dir/build"
	mkdir "$dir/build"
	cp Makefile client_proxy.c config.def.h "$dir/build"
	port=$cport
	[ -z "${TLS-}" ] || { certificate server; port=$tport; }
	{
		echo "port=\"$port\""
		echo "${TLS:+tlspin=\"$pin\"}"
		printf '%s\n' "$@"
	} | sed -n 's/\([^=]*\)=\(.*\)/s|^\\(static const .*[ *]\1\\(\\[]\\)\\{0,1\\} *= \\)[^;]*;|\\1\2;|\
		s|^\\(	\1 *= \\)[0-9]*|\\1\2|/p' >"$dir/settings"
	sed -f "$dir/settings" config.def.h >"$dir/build/config.h"
	bin=$TESTDIR/client_proxy.$(cat "$dir/build/config.h" - <<-E | cksum | tr ' ' .
		${CC-} ${CFLAGS-} ${CPPFLAGS-} ${LDFLAGS-} ${LIBS-} ${MAKE-}
	E
	)
	[ ! -x "$bin" ] || return 0
	(cd "$dir/build" && ${MAKE-make} ${CFLAGS+"CFLAGS=$CFLAGS"} ${LIBS+"LIBS=$LIBS"} &&
	    mv client_proxy "$bin") >"$dir/built" 2>&1 || { cat "$dir/built"; return 1; }
}

# A key and its certificate, of this kind, in $dir/NAME.pem: its $pin. They are made
# as the man page says.
certificate() {
	[ -f "$dir/$1.pem" ] || {
		example TLS 1 | sed "s|proxy\\.key|$dir/$1.key|;s|proxy\\.crt|$dir/$1.crt|
		    s|ec -pkeyopt ec_paramgen_curve:P-256|${2-&}|" >"$dir/openssl"
		sh "$dir/openssl" >"$dir/$1.pin" 2>"$dir/openssl.err"
		cat "$dir/$1.key" "$dir/$1.crt" >"$dir/$1.pem"
	}
	pin=$(sed 's/.*=//' "$dir/$1.pin")
}

# TLS at $tport with this certificate, before the server at $cport.
front() {
	background socat "OPENSSL-LISTEN:$tport,bind=127.0.0.1,reuseaddr,fork,verify=0,cert=$dir/$1.pem,nodelay${2-}" \
	    "TCP:127.0.0.1:$cport,nodelay" 2>>"$dir/front"
	frontpid=$pid
	await listening_only "$tport"
}

# Something else than TLS there: what socat makes of a connection.
front_of() {
	background socat ${2:+"$2"} "TCP-LISTEN:$tport,bind=127.0.0.1,reuseaddr,fork" "$1"
	frontpid=$pid
	touch "$dir/front"
	await listening_only "$tport"
}

# Run it, configured so; its log is $log. With TLS set it reaches the server so:
# `own' is the server's own port for it, else there is one before the server.
proxy() {
	configure "$@" || return
	[ "${TLS-own}" = own ] || [ -f "$dir/front" ] || front server
	launched=$((${launched-0} + 1))
	log=$dir/proxy.$launched.log
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

# Stop it: with status 0. How soon it ends is for one test to show.
stop() {
	kill "-${1-TERM}" "$proxypid"
	await gone "$proxypid"
	wait "$proxypid" || { echo "exit status $?"; cat "$log"; return 1; }
}

logged() { await grown "$log" grep -q -e "$1" "$log"; }

unlogged() { ! grep -e "$1" "$log" || { echo "logged: $1"; return 1; }; }

# So many lines of the log are like that.
logged_times() { await grown "$log" has_logged "$@"; }

has_logged() { [ "$(grep -c -e "$2" "$log")" = "$1" ]; }

# What the last line of its report says that begins like this.
reports() {
	kill -USR1 "$proxypid"
	sleep 0.05
	grep -e ": $1" "$log" | tail -n 1 | grep -e ": $1$2"
}

# What it has counted; how a resource fares.
counted() { await reports "counted: " "$1"; }
fares() { await reports "resource: service@localhost/$1: " "$2"; }

# The proxy uses less than so many KiB of memory.
fits_in() {
	case ${CFLAGS-}${WRAPPER-} in *sanitize* | *valgrind* | *qemu*) return 0 ;; esac
	awk -v most="$1" '{ print } /VmRSS/ { rss = $2 } /VmHWM/ { peak = $2 }
	    END { exit !(rss < most && peak < 24576) }' "/proc/$proxypid/status" >"$dir/memory" ||
	    { grep Vm "$dir/memory"; return 1; }
}

# How often the kernel has let the proxy run.
switches() { awk '/ctxt_switches/ { n += $2 } END { print n }' "/proc/$proxypid/status"; }

# The N-th example in a section of the man page.
example() {
	awk -v section="$1" -v n="$2" '/^\.S[hs] / { in_it = substr($0, 5) == section }
	/^\.Ed/ { on = 0 }
	on { gsub(/\\e/, "\\"); gsub(/\\\(dq/, "\""); print }
	in_it && /^\.Bd/ && ++k == n { on = 1 }' client_proxy.1
}

# ---- helpers: talking XMPP ----

# Print the stanzas of a stream on standard input, one a line. A tag ends with
# the first `>' outside of quotes.
stanzas() {
	awk 'BEGIN { RS = ">" }
	{
		buf = buf $0 ">"
		if (intag)
			tag = tag ">" $0
		else if (i = index($0, "<"))
			tag = substr($0, i)
		else
			next
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
		while ((getline line <ARGV[1]) > 0)
			old[line] = 1
		for (n = ARGC; n > 2; ARGV[n] = "")
			pattern[--n] = ARGV[n]
		ARGV[1] = "-"
	}
	!(NR in old) {
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
	try grown "$dir/$1.out" find_stanza "$@" || {
		echo "$1 did not hear: $*; but:"
		stanzas <"$dir/$1.out" | cut -c1-1000
		return 1
	}
}

# None such has come; something that was sent later has.
unheard() { ! find_stanza "$@" || { echo "$1 heard: $heard"; return 1; }; }

# The named peer sends the rest of the arguments.
tell() {
	p=$dir/$1
	shift
	printf %s "$*" 1<>"$p.in" # which does not wait for who has gone
}

# A raw connection: its name, then socat's address.
connect() {
	mkfifo "$dir/$1.in"
	: >"$dir/$1.heard"
	: >"$dir/$1.out"
	background socat "FD:3!!OPEN:$dir/$1.out,append" "$2" \
	    3<>"$dir/$1.in" 2>>"$dir/socat.err"
	echo "$pid" >"$dir/$1.pid"
}

# Cut a peer's connection.
cut_off() {
	end "$(cat "$dir/$1.pid")" 9
	rm -f "$dir/$1".*
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

# ---- helpers: servers, configured as the man page says, and clients ----

# What config.def.h calls the addresses of the man page.
ours() { sed 's/domain\.example/localhost/g'; }

hosts='VirtualHost "localhost"'
component='example Prosody 1'

# A throw-away Prosody with $hosts; everybody's password is `pw'.
prosody() {
	mkdir -p "$dir/prosody"
	modules='"roster"; "saslauth"; "disco"; "smacks"; "admin_shell"'
	cat >"$dir/prosody.cfg.lua" <<-E
	data_path = "$dir/prosody"
	admin_socket = "$dir/prosody.sock"
	${global-}
	plugin_paths = { "$dir" }
	log = { { levels = { min = "debug" }, to = "file", filename = "$dir/prosody.log" } }
	interfaces = { "127.0.0.1" }
	c2s_ports = { $c2s }
	component_ports = { $cport }
	modules_disabled = { "s2s", "tls", "offline" }
	authentication = "anyone"
	c2s_require_encryption = false
	allow_unencrypted_plain_auth = true
	$(if [ "${TLS-}" = own ]; then
		certificate server
		example TLS 2 | sed "s/\.\.\./$modules/;s/5348/$tport/;s|/etc/prosody/certs/proxy|$dir/server|"
	else
		echo "modules_enabled = { $modules }"
	fi)
	$hosts
	$(eval "$component" | ours)
	${more-}
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
	background command prosody --config "$dir/prosody.cfg.lua" -F >>"$dir/prosody.out" 2>&1
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
	[ "${TLS-}" != own ] || { certificate server; port=$tport; }
	cat >"$node.yml" <<-E
	hosts: [localhost]
	certfiles: []
	auth_method: internal
	modules:
	  mod_roster: {}
	  mod_stream_mgmt: {}
	listen:
	-
	  port: $c2s
	  ip: "127.0.0.1"
	  module: ejabberd_c2s
	  shaper: none
	  max_stanza_size: 262144
	$(example ejabberd 1 | ours | sed "s/5347/$port/")
	${more-}
	$([ "${TLS-}" != own ] || example TLS 3 | sed "s|/etc/ejabberd/proxy|$dir/server|")
	E
	lib=$(dpkg -L ejabberd | sed -n 's|/ejabberd-[0-9.]*/ebin/ejabberd.app$||p;
	    s|/ejabberd-[^/]*/ebin$||p' | head -n 1)
	export HOME="$dir" ERL_LIBS="$lib" ERL_CRASH_DUMP=/dev/null
	export EJABBERD_CONFIG_PATH="$node.yml"
	export EJABBERD_LOG_PATH="$node.log"
	# once in a while it does not come up
	for attempt in 1 2 3; do
		# shellcheck disable=SC2016 # not for the shell
		background erl -noinput ${1:+-name "$1@127.0.0.1" -setcookie test \
		    -kernel inet_dist_use_interface "{127,0,0,1}"} \
		    -mnesia dir "\"$node.mnesia\"" -s ejabberd -eval \
		    "${2:+ejabberd_cluster:join('$2@127.0.0.1'),}"'[ejabberd_auth:try_register(U, <<"localhost">>, <<"pw">>) ||
			U <- [<<"service">>, <<"user">>, <<"other">>]], io:format("ready~n").' >>"$node.out" 2>&1
		serverpids=$pid
		! limit=1200 await grep ready "$node.out" || break
		echo "attempt $attempt:"
		tail -n 20 "$node.out"
		end "$serverpids" 9 2>&1 || :
	done
	# who joins a cluster starts once more
	limit=2400 await listening "$c2s"
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
	<local><ip>127.0.0.1</ip><users>$dir/users.xml</users>
	$(example jabberd2 1 | sed "s/5347/$cport/")</local><io><max_fds>99</max_fds></io>
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
	printf "<chain id='%s'>" "$1"
	shift
	printf '<module>%s</module>' "$@"
	echo "</chain>"
}

# Log in: name of the peer, resource; user and host, if they are not these.
login() {
	connect "$1" "TCP:127.0.0.1:$c2s"
	u=${3-$1}
	h=${4-localhost}
	open="<stream:stream to='$h' version='1.0' xmlns='jabber:client'
		xmlns:stream='http://etherx.jabber.org/streams'>"
	sasl="mechanism='ANONYMOUS'>"
	[ -z "$u" ] || sasl="mechanism='PLAIN'>$(printf '\0%s\0pw' "$u" | openssl base64 -A)"
	tell "$1" "<?xml version='1.0'?>$open"
	hear "$1" "<stream:features"
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
	login "$1" "$1" service "${2-localhost}"
	tell "$1" "<presence/>"
}

# The target accepts the subscription, as the man page says.
accepts() {
	hear "$1" "<presence" "type='subscribe'" "from='proxy.localhost'"
	tell "$1" "$(example 'The subscription' 2 | ours)"
	logged "joined: service@.*localhost/$1: 1 online"
}

# The target, with these resources, has accepted the proxy and is seen by it.
services() {
	service "$1"
	accepts "$1"
	shift
	for r in "$@"; do
		service "$r"
		logged "joined: service@localhost/$r:"
	done
}

# A resource goes offline.
offline() {
	tell "$1" "<presence type='unavailable'/>"
	logged "left: service@localhost/$1: "
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

# A user asks and is answered by this resource: user, id, resource, address.
served() {
	to=${4-proxy.localhost}
	ask "$1" "$2" "$to"
	hear "$3" "<iq" "type='get'" "id='$2'" "from='$to/$1@localhost/[^']*'" "to='service@localhost/$3'"
	answer "$3"
	hear "$1" "<iq" "type='result'" "id='$2'" "from='$to'" "by='$3'"
}

# Which of the resources, whose names are one letter, has got it: $r.
who_got() { await sole_owner "$1"; }

sole_owner() {
	r=$(cd "$dir" && grep -l -e "$1" ./?.out)
	r=${r#./}
	r=${r%.out}
	[ ${#r} = 1 ]
}

# Clients that the shell is too slow for: see peer.py.
peer() {
	program peer.py
	background /usr/bin/python3 "$TESTDIR/peer.py" "$@"
}

# Workers that answer by themselves; a number: in so many milliseconds each.
workers() {
	services z
	ms=0
	for w in "$@"; do
		case $w in
		[0-9]*) ms=$w ;;
		*) worker "$w" "$ms" ;;
		esac
	done
	offline z
}

worker() {
	before=$(grep -c "joined: service@localhost/$1:" "$log") || :
	peer worker "$c2s" service localhost "$@"
	eval "pid_$1=$pid"
	logged_times $((before + 1)) "joined: service@localhost/$1:"
}

# A requester of many requests; what comes of it is in $dir/asked.RESOURCE.
asker() {
	peer asker "$@" >"$dir/asked.$3"
	askers="$pid ${askers-}"
}

askers_are_done() {
	# shellcheck disable=SC2086 # several
	wait $askers || :
	askers=
	cat "$dir"/asked.*
}

# With slixmpp: see talk.py. Skip the test if it is not there.
library() {
	/usr/bin/python3 -c "import slixmpp" || need - python3-slixmpp
	program talk.py
}

# A worker that uses it, `managed' if with stream management.
library_worker() {
	background /usr/bin/python3 "$TESTDIR/talk.py" "$c2s" "$log" worker "$@" >>"$dir/$1.python" 2>&1
	logged "joined: service@localhost/$1:"
}

# Workers and a requester talk, with relay: what they do is this function of talk.py,
# on this server.
talk() {
	library
	"$2"
	proxy relay=1
	/usr/bin/python3 "$TESTDIR/talk.py" "$c2s" "$log" "$1"
	unlogged dropped
}

# ---- helpers: a server of our own making, a raw peer named srv ----

serve() {
	rm -f "$dir/srv".* "$dir/old"
	connect srv "${1-TCP-LISTEN:$cport,bind=127.0.0.1},reuseaddr,nodelay"
	await taken "$cport"
}

sha1() { printf %s "$1" | openssl dgst -sha1 -r | cut -d' ' -f1; }

# It accepts the proxy, at $accepted or a little later. $decl is what its stream's
# header declares.
welcome() {
	hear srv "<stream:stream" "to='proxy.localhost'" "xmlns='jabber:component:accept'"
	tell srv "<?xml version='1.0'?><stream:stream id='s1'
		xmlns='jabber:component:accept' from='proxy.localhost' ${decl-}
		xmlns:stream='http://etherx.jabber.org/streams'>"
	hear srv "<handshake>$(sha1 s1secret)</handshake>"
	accepted=$(milliseconds)
	tell srv "<handshake/>"
	hear srv "<presence type='subscribe' id='[^']*' from='proxy.localhost' to='service@localhost'/>"
}

# The connection is cut, and there is another.
reconnects() {
	cut_off srv
	logged disconnected
	serve
	welcome
}

# A scripted server, the proxy with these settings NAME=VALUE, resource a and these.
# However long the test takes, the subscription is not requested again meanwhile.
scripted() {
	serve
	proxy askmin=3600 "$@"
	welcome
	joins a
	for who in "$@"; do
		case $who in *=*) ;; *) joins "$who" ;; esac
	done
}

# The server delivers a stanza: element, type, from, to, the rest of the tag.
# shellcheck disable=SC2016 # not for the shell
deliver() { tell srv "<$1${2:+ type='$2'} from='$3' to='$4' ${5-id='1'/}>"; }

# A request: its id, type, from, to.
request() { deliver iq "${2:-get}" "${3:-u@h/r}" "${4:-proxy.localhost}" "id='$1'/"; }

# A message: its id, from, to, what is in it, its type.
message() {
	deliver message "${5-chat}" "$2" "${3:-proxy.localhost}" "id='$1'>${4-<body>hi</body>}</message"
}

# A resource says that to a request: its id, the resource, type, to whom.
reply() { deliver iq "${3:-result}" "service@localhost/$2" "proxy.localhost/${4:-u@h/r}" "id='$1'/"; }

# The client asks: id, resource, whom.
own() { deliver iq get "service@localhost/$2" "${3:-proxy.localhost/u@h/r}" "id='$1'/"; }

# A user says that to it: id, from, type, to.
own_reply() { deliver iq "${3:-result}" "${2:-u@h/r}" "${4:-proxy.localhost}" "id='$1'/"; }

# What the server says for worker $1: that request $2 has bounced; that it has left.
bounced() {
	printf %s "<iq type='error' id='$2' from='service@localhost/$1' to='proxy.localhost/u@h/r'>" \
	    "<error type='cancel'><${3-recipient-unavailable}" \
	    " xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>"
}

gone_too() { printf %s "<presence type='unavailable' from='service@localhost/$1' to='proxy.localhost'/>"; }

# It says that alone.
bounce() { tell srv "$(bounced "$2" "$1" "$3")"; }

# Presence of the target's resources.
online() {
	for on in "$@"; do
		tell srv "<presence from='service@localhost/$on' to='proxy.localhost'/>"
	done
}

joins() {
	online "$@"
	for on in "$@"; do
		logged "joined: service@localhost/$on:"
	done
}

unavailable() { tell srv "$(gone_too "$1")"; }

leaves() {
	unavailable "$1"
	logged "left: service@localhost/$1: "
}

shows() { tell srv "<presence from='service@localhost/$1' to='proxy.localhost'><show>$2</show></presence>"; }

# Wait for such a byte sequence in all that the proxy has written.
written() { await grown "$dir/srv.out" grep -q -e "$1" "$dir/srv.out"; }

# It has written exactly this, last.
wrote() { await grown "$dir/srv.out" has_written "$1" || { echo "not: $1"; tail -c 1000 "$dir/srv.out"; return 1; }; }

has_written() { tail -c $((${#1} + 300)) "$dir/srv.out" | grep -qF -e "$1"; }

# The stanzas that the proxy has sent since the last time, pings apart: $news. It has
# finished with all before when it has answered twice.
news() {
	for _ in 1 2; do
		mark=$((${mark-0} + 1))
		deliver iq get mark@h proxy.localhost/mark "id='mark$mark'/"
		written "id='mark$mark'"
	done
	stanzas <"$dir/srv.out" | grep -v -e "to='mark@h'" -e "<ping xmlns='urn:xmpp:ping'/>" >"$dir/all"
	touch "$dir/old"
	news=$(tail -n "+$(($(wc -l <"$dir/old") + 1))" "$dir/all")
	mv "$dir/all" "$dir/old"
}

# These stanzas have come since the last time, and nothing else.
comes() {
	news
	[ "$news" = "$1" ] || { printf 'not\n%s\nbut\n%s\n' "$1" "$news"; return 1; }
}

# So many like that have.
comes_times() {
	news
	[ "$(echo "$news" | grep -c -e "$2")" = "$1" ] || { echo "not $1 of $2 in"; echo "$news"; return 1; }
}

# The proxy has never sent such a stanza.
unsent() { ! stanzas <"$dir/srv.out" | grep -e "$1" || { echo "sent: $1"; return 1; }; }

# An error: type, condition, id, from, to, element.
error() {
	echo "<${6-iq} type='error' id='$3' from='${4-proxy.localhost}' to='${5-u@h/r}'><error type='$1'><$2 xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></${6-iq}>"
}

# The requester with this id has got this error.
has_failed() {
	hear srv "^<iq type='error' id='$2' from='proxy.localhost' to='[^']*'><error type='wait'><$1 "
}

# Resource $1 is handed a request with this id; its type, from whom.
goes_to() {
	request "$2" "${3-}" "${4-}"
	is_handed_to "$1" "$2" "${4-u@h/r}" "${3-get}"
}

# A request goes to resource $1 and is answered.
works() {
	goes_to "$@"
	passes "$1" "$2" result "${4-u@h/r}"
}

# The request with this id is handed on to resource $1.
is_handed_to() {
	hear srv "^<iq type='${4-get}' id='$2' from='proxy.localhost/${3-u@h/r}' to='service@localhost/$1'/>$"
}

# What resource $1 says to it, a result, passes.
passes() {
	reply "$2" "$1" "${3-}" "${4-}"
	hear srv "^<iq type='${3-result}' id='$2' from='proxy.localhost' to='${4-u@h/r}'/>$"
}

# Nothing comes out for what it says to it.
is_late() {
	news
	reply "$2" "$1" "${3-}" "${4-}"
	comes ""
}

# A message goes to resource $1: id, from whom.
is_told() {
	message "$2" "$3"
	hear srv "<message.*id='$2' from='proxy.localhost/$3' to='service@localhost/$1'"
}

# Sets go out until each of these resources has had one.
each_gets_a_set() {
	for r in "$@"; do
		i=0
		until find_stanza srv "id='$r-" "to='service@localhost/$r'"; do
			i=$((i + 1))
			[ $i -lt 99 ]
			request "$r-$i" set
			news
		done
	done
}

# The id of what the proxy has asked the target last.
last_ask() {
	grep -o "<presence type='\(subscribe\|probe\)' id='[^']*'" "$dir/srv.out" |
	    sed -n "\$s/.* id='\(.*\)'/\1/p"
}

# A scripted server that reads at most so many bytes ten times a second, and says what is
# in this file.
reads_slowly() {
	{
		printf %s "<stream:stream id='1' xmlns='jabber:component:accept' xmlns:stream='http://etherx.jabber.org/streams'>" \
		    "<handshake/><presence from='service@localhost/a' to='proxy.localhost'/>"
		cat "$2"
	} >"$dir/all"
	cat >"$dir/slow" <<-E
	cat all &
	while head -c $1 >part && [ -s part ]; do
		cat part >>srv.out
		sleep 0.1
	done
	E
	background sh -c "cd '$dir' && exec socat TCP-LISTEN:$cport,bind=127.0.0.1,reuseaddr,rcvbuf=65536 'SYSTEM:sh slow'"
	await listening_only "$cport"
}

# A ping to ourselves.
ping="<iq type='get' id='due[0-9a-f]*' from='proxy.localhost' to='proxy.localhost'>"

# When something is due, as that a probe is read or has had its time, a ping goes out,
# which is back after all that has come.
is_due() {
	hear srv "$ping"
	tell srv "$heard"
}

# The target confirms the subscription; the proxy probes. The server has read the
# probe once the ping that follows it is back.
probed() {
	deliver presence subscribed service@localhost proxy.localhost /
	probe_is_read
}

probe_is_read() {
	hear srv "<presence type='probe' id='[^']*' from='proxy.localhost' to='service@localhost'/>"
	is_due
}

# A probe that only these resources answer.
only_answer() {
	online "$@"
	is_due
}

# Resource $1 has been silent with a request for too long, again: it is pinged.
is_pinged() { try grown "$dir/srv.out" pings "$1" || { echo "nobody pings $1"; return 1; }; }

pings() {
	! find_stanza srv "^<iq type='get' id='stall' from='proxy.localhost' to='service@localhost/$1'><ping xmlns='urn:xmpp:ping'/></iq>$" || return 0
	while find_stanza srv "^<iq type='get' id='due"; do
		tell srv "$heard"
	done
	return 1
}

# It says nothing to that either.
is_set_aside() {
	is_pinged "$1"
	is_pinged "$1"
	logged "stalled: service@localhost/$1: silent for over"
}

# What a, which is not set aside, says is in time; so is its answer to request 1.
was_heard_in_time() {
	reply other a
	news
	passes a 1
	unlogged stalled
}

# What comes with our ping to ourselves in $heard comes as it is set aside.
is_to_be_set_aside() {
	is_pinged "$1"
	is_due
	is_due
	hear srv "^<iq type='get' id='due"
}

# A server that says all at once and reads nothing, $stall, until it can say no more.
gets_stuck() {
	peer stall "$cport" 20000 >"$dir/stall"
	stall=$pid
	await listening_only "$cport"
	proxy MAXREQUESTS=50000 keepalive=0 patience=60
	await grep stuck "$dir/stall"
}

# Requests from $1 requesters, $2 from each, with ids that begin with $3.
flood() {
	awk -v users="$1" -v n="$2" -v id="$3" 'BEGIN {
		for (u = 1; u <= users; u++)
			for (i = 1; i <= n; i++)
				printf "<iq type=\"set\" id=\"%s%d-%d\" from=\"%s%d@h/r%d\" to=\"proxy.localhost\"/>", id, u, i, id, u, i
	}' >"$dir/srv.in"
	written "id='$3$1-$2'"
}

# So many requests, in whose ids %d is their number, each answered by a before the next
# is read. There are $3 ids, or else as many.
exchanges() {
	awk -v n="$1" -v ids="$2" -v m="${3-$1}" 'BEGIN {
		for (i = 1; i <= n; i++) {
			id = sprintf(ids, (i - 1) % m + 1)
			printf "<iq type=\"get\" id=\"%s\" from=\"u@h/r\" to=\"proxy.localhost\"/>", id
			printf "<iq type=\"result\" id=\"%s\" from=\"service@localhost/a\" to=\"proxy.localhost/u@h/r\"/>", id
		}
	}' >"$dir/srv.in"
	written_times "$1" "type='result' id='${2%\%d}"
}

# Fill so many places, else all: the first requester may have half of them, the next
# half of the rest.
fill() {
	awk -v id="$1" -v left="${2-4096}" 'BEGIN {
		for (u = 1; left > 0; u++) {
			n = int((left + 1) / 2)
			for (i = 1; i <= n; i++)
				printf "<iq type=\"set\" id=\"%s%d-%d\" from=\"%s%d@h/r\" to=\"proxy.localhost\"/>", id, u, i, id, u
			left -= n
		}
	}' >"$dir/srv.in"
	written_times "${2-4096}" "<iq type='set' id='$1"
}

# Answer the first so many of those with such ids, whether they have been or not.
answer_some() {
	grep -o "<iq type='set' id='$1[^']*' from='[^']*' to='[^']*'" "$dir/srv.out" | head -n "$2" |
	    sed "s/type='set'/type='result'/;s/from=\([^ ]*\) to=\(.*\)/from=\2 to=\1\/>/" >"$dir/srv.in"
	written_times "$2" "type='result' id='$1"
}

written_times() { await grown "$dir/srv.out" has_often "$@"; }

has_often() { [ "$(grep -o -e "$2" "$dir/srv.out" | wc -l)" -ge "$1" ]; }

# Ask for 10,000 requesters: who has which resource is in $dir/$1.
ask_for_many() {
	awk -v p="$1" 'BEGIN {
		for (i = 0; i < 10000; i++)
			printf "<iq type=\"get\" id=\"%s%d\" from=\"user%d@localhost/r\" to=\"proxy.localhost\"/>", p, i, i
	}' >"$dir/srv.in"
	written "id='${1}9999'"
	grep -o "<iq type='get' id='$1[0-9]*' from='[^']*' to='[^']*'" "$dir/srv.out" |
	    sed "s/.* from='\([^']*\)' to='[^']*\/\(.\)'/\1 \2/" | sort >"$dir/$1"
	[ "$(wc -l <"$dir/$1")" = 10000 ]
}

# Between $3 and $4 of them have moved, each from or to one of the resources $5.
moved() {
	join "$dir/$1" "$dir/$2" | awk -v least="$3" -v most="$4" -v of="$5" '
	$2 != $3 {
		n++
		bad += !($2 ~ of || $3 ~ of)
	}
	END {
		print n + 0 " moved, " bad + 0 " of them need not"
		exit bad || n < least || n > most
	}'
}

# A stanza of SIZE bytes x: its tag, all but the end, what stands around them.
large() {
	printf '<%s>%s' "$2" "${3-}"
	bytes "$1" "${5-x}"
	printf '%s</%s>' "${4-}" "${2%% *}"
}

# The stream goes on: a request passes.
goes_on() {
	request "$1"
	hear srv "<iq type='get' .*id='$1'"
	fits_in 8192
}

# The stream ends with this error, and comes back by itself.
ends_with() {
	hear srv "<stream:error><$1 xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>"
	logged "disconnected: "
	serve
	: >"$log"
	welcome
	joins a
	fits_in 8192
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

# ---- programs: clients and a server that the shell is too slow for ----
#
#	worker PORT USER HOST RESOURCE [MS]
#	        answer each request, if MS is given one after the other, in so many
#	        milliseconds each; SIGUSR1: go offline, answering what still comes. A
#	        worker called s answers no pings
#	asker PORT USER RESOURCE TO N [RATE]
#	        send N requests, 100 at once, and count what comes back until nothing
#	        has for 5 seconds; with RATE, so many a second, and tell how many
#	        milliseconds the slowest has taken
#	drip    copy stdin, byte by byte
#	stall PORT N
#	        a server that sends N requests and does not read before SIGUSR1
#	chatter PORT
#	        one that sends requests as long as it can, and reads nothing
#	jam PORT N [ANSWERS]
#	        one that does not read before it has written all: so many large answers,
#	        twice each, then, once each has passed or failed, N requests; then more, until one is
#	        handed out; how many these were, were handed out, were refused
#	deaf PORT
#	        a server that accepts no connection
#	run COMMAND...
#	        print the microseconds of CPU time, user and system, that it takes
#	load FILE TIMES STANZAS WORKERS PORT COMMAND...
#	        the same of a component, with a server that sends FILE so many times; also
#	        how long that took, the peak of its resident memory in KiB, stanzas lost;
#	        with -1 workers it is not greeted as a component; with a `u' behind their
#	        number a tenth of them hangs and a tenth drains

: <<\END # peer.py
import base64, collections, os, re, resource, select, signal, socket, subprocess, sys, time
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

STREAM = "<stream:stream %s xmlns:stream='http://etherx.jabber.org/streams'>"


class Peer:
    """One end of a stream: what to say, and the stanzas that have come, each as a
    list of its elements' names and attributes."""

    def __init__(self, sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.restart()

    def restart(self):
        self.depth, self.stanza, self.stanzas = 0, [], []
        self.parser = expat.ParserCreate()
        self.parser.StartElementHandler, self.parser.EndElementHandler = self.start, self.end

    def start(self, name, attributes):
        if self.depth > 0:
            self.stanza.append((name, attributes))
        self.depth += 1

    def end(self, name):
        self.depth -= 1
        if self.depth == 1:
            self.stanzas.append(self.stanza)
            self.stanza = []

    def say(self, text):
        self.sock.sendall(text.encode())

    def read(self, timeout=None):
        """The stanzas that have come until now, or come within so many seconds."""
        if select.select([self.sock], [], [], timeout)[0]:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError
            self.parser.Parse(data)
        got, self.stanzas = self.stanzas, []
        return got


def login(port, user, host, resource):
    peer = Peer(socket.create_connection(("127.0.0.1", int(port))))
    stream = STREAM % ("to='%s' version='1.0' xmlns='jabber:client'" % host)
    peer.say(stream + "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>%s</auth>"
             % base64.b64encode(("\0%s\0pw" % user).encode()).decode())
    while not any(stanza[0][0] == "success" for stanza in peer.read()):
        pass
    peer.restart()
    peer.say(stream + "<iq type='set' id='bind'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>"
             "<resource>%s</resource></bind></iq>" % resource)
    while not any(stanza[0][1].get("id") == "bind" for stanza in peer.read()):
        pass
    return peer


def worker(port, user, host, name, ms=0):
    peer = login(port, user, host, name)
    signal.signal(signal.SIGUSR1, lambda *_: peer.say("<presence type='unavailable'/>"))
    peer.say("<presence/>")
    queue, busy, due = collections.deque(), float(ms) / 1000, 0
    while True:
        for stanza in peer.read(max(0, due - time.monotonic()) if queue else None):
            iq = stanza[0][1]
            if stanza[0][0] != "iq" or iq.get("type") not in ("get", "set"):
                continue
            if name == "s" and any(element == "ping" for element, _ in stanza):
                continue
            if not queue:
                due = time.monotonic() + busy
            queue.append((iq["id"], iq["from"]))
        while queue and time.monotonic() >= due:
            peer.say("<iq type='result' id=%s to=%s><query xmlns='test' by='%s'/></iq>"
                     % (*map(quoteattr, queue.popleft()), name))
            due = time.monotonic() + busy


def asker(port, user, resource, to, n, rate=None):
    peer = login(port, user, "localhost", resource)
    n, rate, begun, sent, slowest = int(n), rate and int(rate), time.monotonic(), 0, 0
    sent_at, seen, by, conditions, results = {}, set(), collections.Counter(), collections.Counter(), 0
    twice, last = 0, begun
    while True:
        now = time.monotonic()
        while sent < n and (begun + sent / rate <= now if rate else sent < 100 + len(seen)):
            sent_at[str(sent)] = last = now
            peer.say("<iq type='get' id='%d' to='%s'><query xmlns='test'/></iq>" % (sent, to))
            sent += 1
        # when all have an answer, does one get another?
        left = last + (0.5 if len(seen) == n else 5) - now
        if left <= 0:
            break
        try:
            stanzas = peer.read(min(left, 1 / rate) if rate and sent < n else left)
        except (EOFError, OSError):
            break
        for (name, iq), *inside in stanzas:
            last = time.monotonic()
            if name != "iq" or iq.get("id") not in sent_at:
                continue
            if iq["id"] in seen:
                twice += 1
                continue
            seen.add(iq["id"])
            slowest = max(slowest, last - sent_at[iq["id"]])
            results += iq["type"] == "result"
            by.update(a["by"] for name, a in inside if "by" in a)
            conditions.update(name for name, a in inside
                              if a.get("xmlns") == "urn:ietf:params:xml:ns:xmpp-stanzas" and name != "text")
    print("%d sent, %d answered, %d errors;" % (sent, results, len(seen) - results),
          *("%s %d" % pair for pair in sorted(by.items()) + sorted(conditions.items())),
          "; slowest %d ms" % (slowest * 1000) if rate else "", "; %d twice" % twice)
    sys.exit(len(seen) != n or twice > 0)


def drip():
    for c in sys.stdin.buffer.read():
        os.write(1, bytes([c]))
        time.sleep(0.00002)


def listen(port):
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", int(port)))
    server.listen(0)
    return server


def request(i):
    return "<iq type='get' from='u@h/r' id='%d' to='proxy.localhost'><q>%s</q></iq>" % (i, "x" * 1400)


def component(port):
    peer = Peer(listen(port).accept()[0])
    peer.say(STREAM % "id='1' xmlns='jabber:component:accept'")
    while not any(stanza[0][0] == "handshake" for stanza in peer.read()):
        pass
    peer.say("<handshake/><presence from='service@localhost/a' to='proxy.localhost'/>")
    return peer


def jam(port, n, answers=0):
    peer = component(port)
    for size in socket.SO_RCVBUF, socket.SO_SNDBUF:
        peer.sock.setsockopt(socket.SOL_SOCKET, size, 65536)
    asked, got, last = int(n), collections.Counter(), False
    peer.say("".join("<iq type='get' from='v@h/r' id='a%d' to='proxy.localhost'/>" % (i // 2)
                     for i in range(int(answers))))
    while got["get"] < int(answers):
        got.update(stanza[0][1].get("type") for stanza in peer.read())
    # a second answer that says that a is not there could be handed on to b
    peer.say("<presence from='service@localhost/b' to='proxy.localhost'/>")
    peer.say("".join("<iq type='%s' from='service@localhost/a' id='a%d' to='proxy.localhost/v@h/r'>"
                     "<error>%s<recipient-unavailable xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>"
                     % ("result" if i % 4 < 2 else "error", i // 4, "x" * 60000)
                     for i in range(2 * int(answers))))
    while got["result"] + got["error"] < int(answers):
        got.update(stanza[0][1].get("type") for stanza in peer.read())
    got.clear()
    peer.say("".join(map(request, range(asked))))
    while not last:
        stanzas = peer.read(0.1)
        got.update(stanza[0][1]["type"] for stanza in stanzas if stanza[0][1].get("id", "").isdigit())
        last = any(stanza[0][1].get("type") == "get" and stanza[0][1]["id"] == str(asked - 1) for stanza in stanzas)
        if not stanzas:
            peer.say(request(asked))
            asked += 1
    print(asked, got["get"], got["error"], "handed", flush=True)
    signal.pause()


def chatter(port):
    peer = component(port)
    try:
        while True:
            peer.say(request(1))
    except OSError:
        pass


def stall(port, n):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    peer = component(port)
    waiting = "".join(map(request, range(int(n)))).encode()
    peer.sock.setblocking(False)
    answered, stuck, how = 0, False, "open"
    while answered < int(n):
        can_read, can_write, _ = select.select([peer.sock] if stuck else [], [peer.sock] if waiting else [], [],
                                               20 if stuck else 1)
        if not stuck and not can_write:
            print("stuck", flush=True)
            stuck = signal.sigwait([signal.SIGUSR1])
        elif not can_read and not can_write:
            break
        try:
            if can_write:
                waiting = waiting[peer.sock.send(waiting):]
            for stanza in peer.read(0) if can_read else []:
                answered += stanza[0][1].get("id") == str(answered)
        except EOFError:
            how = "closed" if peer.depth == 0 else "cut"
            break
    print("%d of %s in order, %s" % (answered, n, how), flush=True)


def deaf(port):
    server = listen(port)
    callers = [socket.socket() for _ in range(3)]
    for caller in callers:
        caller.setblocking(False)
        caller.connect_ex(("127.0.0.1", int(port)))
    print("full", flush=True)
    signal.pause()


def cpu(who):
    usage = resource.getrusage(who)
    print("%d %d" % (usage.ru_utime * 1e6, usage.ru_stime * 1e6), end="")


def run(*command):
    subprocess.run(command)
    cpu(resource.RUSAGE_CHILDREN)


def wait_for(sock, what):
    got = b""
    while what not in got:
        got += sock.recv(1 << 20)
    return got


def greet(sock, workers, unwell):
    """As many workers come online. If some are to be unwell, the first tenth gets
    requests and says nothing until it has been pinged twice; the next drains."""
    say = lambda text: sock.sendall(text.encode())
    say(STREAM % "id='1' xmlns='jabber:component:accept'" + "<handshake/>")
    wait_for(sock, b"'subscribe'")
    say("<presence type='subscribed' from='service@localhost' to='proxy.localhost'/>")
    wait_for(sock, b"'probe'")
    for i in range(workers):
        if unwell and i == workers // 10:
            for h in range(20 * i):
                say("<iq type='set' id='h%d' from='h%d@h/r' to='proxy.localhost'/>" % (h, h))
            pings, got = 0, b""
            while pings < 2 * i:
                got += sock.recv(1 << 20)
                for ping in re.findall(rb"<iq type='get' id='(?:due|stall).*?</iq>", got):
                    pings += b"'stall'" in ping
                    if b"'due" in ping:
                        sock.sendall(ping)
                got = got[got.rfind(b"</iq>") + 5:] if b"</iq>" in got else got
        show = "<show>dnd</show>" if unwell and workers // 10 <= i < workers // 5 else ""
        say("<presence from='service@localhost/r%d' to='proxy.localhost'>%s</presence>" % (i, show))
    # all of them are known when this has come back
    say("<message from='u@h' to='proxy.localhost' id='known'/>")
    wait_for(sock, b"'known'")


def load(file, times, stanzas, workers, port, *command):
    data, at, tail = memoryview(open(file, "rb").read()), 0, b""
    times, left, server = int(times), int(stanzas), listen(port)
    child = subprocess.Popen(command)
    sock = server.accept()[0]
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if workers != "-1":
        greet(sock, int(workers.rstrip("u")), workers.endswith("u"))
    sock.setblocking(False)
    begun = last = time.monotonic()
    # never sleep: the system would charge the command for waking us
    while left > 0 and time.monotonic() - last < 20:
        try:
            got = tail + sock.recv(1 << 20)
            # the component's own pings apart
            left -= got.count(b"</iq>") - tail.count(b"</iq>") - got.count(b"ping'/></iq>")
            tail, last = got[-11:], time.monotonic()
        except BlockingIOError:
            pass
        try:
            if times > 0:
                at += sock.send(data[at:])
                last = time.monotonic()
            if at == len(data):
                at, times = 0, times - 1
        except BlockingIOError:
            pass
    took = (time.monotonic() - begun) * 1e6
    peak = re.search(r"VmHWM:\s*(\d+)", open("/proc/%d/status" % child.pid).read())
    child.terminate()
    child.wait()
    cpu(resource.RUSAGE_CHILDREN)
    print(" %d %s %d" % (took, peak.group(1), left), end="")


try:
    globals()[sys.argv[1]](*sys.argv[2:])
except (EOFError, OSError):
    sys.exit("the connection has ended")
END

# What workers and a requester that use slixmpp do: PORT, the proxy's log, and
#	worker RESOURCE
#	        answer requests; one called managed has stream management
#	example FILE
#	        be the worker of the man page, but for who and where it is
#	bytestream, questions, chat
#	        talk

: <<\END # talk.py
import asyncio
import os
import sys

import slixmpp
from slixmpp.xmlstream.handler import Callback
from slixmpp.xmlstream.matcher import MatchXPath

port, log, what = int(sys.argv[1]), sys.argv[2], sys.argv[3]
proxy, user_jid, there = "proxy.localhost", "user@localhost/x", "proxy.localhost/user@localhost/x"
asked_for_test = MatchXPath("{jabber:client}iq/{test}query")


class Client(slixmpp.ClientXMPP):
    def __init__(self, jid, password=None):
        super().__init__(jid.replace("domain.example", "localhost"), "pw", sasl_mech="PLAIN")
        self["feature_mechanisms"].unencrypted_plain = True

    def connect(self):
        if hasattr(self, "enable_plaintext"): # later versions
            self.enable_plaintext = True
            self.enable_starttls = self.enable_direct_tls = False
            super().connect("127.0.0.1", port)
        else:
            super().connect(("127.0.0.1", port), force_starttls=False, disable_starttls=True)


def answer(iq, **attributes):
    reply = iq.reply()
    reply.append(slixmpp.ET.Element("{test}query", attributes))
    reply.send()


async def login(jid, *plugins):
    client = Client(jid)
    for plugin in plugins + ("xep_0030", "xep_0085", "xep_0092", "xep_0184", "xep_0199"):
        client.register_plugin(plugin)
    client.register_plugin("xep_0047", {"auto_accept": True})
    client.add_event_handler("sm_enabled", lambda event: print("sm", flush=True))
    client.connect()
    await client.wait_until("session_start")
    client.send_presence()
    return client


async def worker(name):
    client = await login("service@localhost/" + name, *(["xep_0198"] if name == "managed" else []))
    client.register_handler(Callback("test", asked_for_test, lambda iq: answer(iq, by=name)))
    await asyncio.Event().wait()


async def service(name):
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
    a, u = await service("a"), await user()
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
    a, u = await service("a"), await user()
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
    a, u = await service("a"), await user()
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


loop = asyncio.get_event_loop()
if what == "example":
    slixmpp.ClientXMPP = Client
    exec(open(sys.argv[4]).read())
loop.run_until_complete(asyncio.wait_for(globals()[what](*sys.argv[4:]), 300 if what == "worker" else 60))
END

serve_load() { /usr/bin/python3 "$TESTDIR/peer.py" load "$@"; }

# Expat alone, for comparison; each prints microseconds of CPU time:
#	load parse FILE TIMES PIECE     over FILE, so many times as one stream, in pieces
#	                                of so many bytes
#	load relay PORT PIECE           what the server sends, and send all back
build_load() {
	program peer.py
	load=$TESTDIR/load
	[ ! -x "$load" ] || return 0
	program load.c
	cc -O2 -o "$load.$$" "$TESTDIR/load.c" -lexpat
	mv "$load.$$" "$load"
}

: <<\END # load.c
#define _GNU_SOURCE
#include <sys/resource.h>
#include <sys/socket.h>
#include <arpa/inet.h>
#include <err.h>
#include <expat.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

XML_Bool XML_SetReparseDeferralEnabled(XML_Parser, XML_Bool);
#pragma weak XML_SetReparseDeferralEnabled

static char buf[1 << 20];

static void start(void *data, const char *name, const char **atts) { }
static void end(void *data, const char *name) { }
static void characters(void *data, const char *s, int n) { }

/* Parse what can be read, in pieces of this size; write it back, if so. */
static void
parse(XML_Parser p, int fd, size_t piece, int back)
{
	struct pollfd ready = { .fd = fd, .events = POLLIN };
	ssize_t n, at, w;

	while ((!back || poll(&ready, 1, -1) > 0) && (n = read(fd, buf, piece)) > 0) {
		if (!XML_Parse(p, buf, (int)n, 0))
			errx(1, "%s", XML_ErrorString(XML_GetErrorCode(p)));
		for (at = 0; back && at < n; at += w)
			if ((w = write(fd, buf + at, (size_t)(n - at))) < 0)
				err(1, "write");
	}
}

int
main(int argc, char *argv[])
{
	XML_Parser p = XML_ParserCreate("UTF-8");
	struct sockaddr_in sin = { .sin_family = AF_INET };
	struct rusage r;
	int fd, one = 1;
	long times;

	if (XML_SetReparseDeferralEnabled)
		XML_SetReparseDeferralEnabled(p, XML_FALSE);
	XML_SetElementHandler(p, start, end);
	XML_SetCharacterDataHandler(p, characters);
	XML_Parse(p, "<stream>", 8, 0);
	if (argc == 5) {
		fd = open(argv[2], O_RDONLY);
		for (times = atol(argv[3]); times-- > 0; lseek(fd, 0, SEEK_SET))
			parse(p, fd, (size_t)atol(argv[4]), 0);
		getrusage(RUSAGE_SELF, &r);
		printf("%ld %ld", (long)r.ru_utime.tv_sec * 1000000 + r.ru_utime.tv_usec,
		       (long)r.ru_stime.tv_sec * 1000000 + r.ru_stime.tv_usec);
		return 0;
	}
	sin.sin_port = htons((unsigned short)atoi(argv[2]));
	sin.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	fd = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(fd, (struct sockaddr *)&sin, sizeof(sin)) < 0)
		err(1, "port %s", argv[2]);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	parse(p, fd, (size_t)atol(argv[3]), 1);
	return 0;
}
END

# The simulated world around client_proxy.c. Its first part is the config.h. The
# sizes are one of three: small, the defaults, in between; the seed says which.
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
extern const char *domain, *secret, *host, *port, *tlspin, *prefix;
extern char target[16];
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
#define _DEFAULT_SOURCE         /* MAP_ANONYMOUS, and a signal() of that name */

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

/* What stands in for a call has the type of that, and the linker its name. */
#ifdef PROGRAM
#define STANDIN(call) __typeof__(call) call __asm__("w_" #call);
#else
#define STANDIN(call) __typeof__(call) w_##call;
#endif
STANDIN(socket) STANDIN(connect) STANDIN(getsockopt) STANDIN(fcntl) STANDIN(poll) STANDIN(read)
STANDIN(write) STANDIN(shutdown) STANDIN(close) STANDIN(getaddrinfo) STANDIN(freeaddrinfo)
STANDIN(getnameinfo) STANDIN(clock_gettime) STANDIN(sigaction) STANDIN(signal) STANDIN(realloc)
STANDIN(free)
void w_says(const char *);
void w_exit(int, int);
void w_elements(XML_Parser, XML_StartElementHandler, XML_EndElementHandler);
const char *w_made(unsigned long long *, size_t *);
uint64_t w_places(const char *);
enum { WAKER = 3, WAKEW = 4, FIRSTFD = 5 };

#ifdef PROGRAM
#define exit(a)                  w_exit(a, 0)
#define _exit(a)                 w_exit(a, 1)
#define pipe(a)                  ((a)[0] = WAKER, (a)[1] = WAKEW, 0)
#define open(a, b)               WAKER
#define tcgetpgrp(a)             (-1)
#define ttyname(a)               NULL
#define vsnprintf(a, b, f, v)    (w_says(f), vsnprintf(a, b, f, v))
#define setsockopt(a, b, c, d, e) 0
#define setrlimit(a, b)          0
#define malloc_trim(a)           0
#define XML_SetElementHandler(a, b, c) w_elements(a, b, c)
#define main                     client_proxy
/* the world does not have these */
#pragma GCC poison recv send sendmsg recvmsg readv writev select malloc calloc
#pragma GCC poison nanosleep usleep sleep

#ifdef FUZZ
#pragma clang section bss = "cpbss" data = "cpdata"
#endif
#include "client_proxy.c"

/* What it has put into its buffer and not all written: *len bytes, and how many
 * before them. */
const char *
w_made(unsigned long long *before, size_t *len)
{
	*before = bytesout - outpos;
	*len = out.len;
	return out.s;
}

/* The two places in which it counts the requests of a user: once in millions, two
 * users share both. */
uint64_t
w_places(const char *user)
{
	uint64_t share = hash(salt, user, strcspn(user, "/"));

	return share % SHARES << 32 | (share >> 32) % SHARES;
}
#else /* what follows is the world */

#define WORLDCONFIG
#include "world.c"
#undef WORLDCONFIG

const char *domain, *secret, *host, *port, *tlspin, *prefix;
char target[16];
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
	X(BIGPRES, 40) X(FAR, 40) X(DEAF, 40) X(PINGLOST, 40) X(COUPLED, 100)
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
	double hours, tomove;   /* and so many should have */
	uint64_t hash;
} *total;
static int verbose;
static jmp_buf ending;
static const unsigned char *fuzzbytes;
static size_t nfuzzbytes;

#ifdef FUZZ
static char *saved;             /* what the program's data were at first */
/* Everything that follows begins anew with each world. */
#pragma clang section bss = "wbss"
extern char __start_wbss[], __stop_wbss[];
#endif
static char on[BEHAVIOURS];
static int wild, healed, naddrs;
static uint64_t chance, theseed, tracehash, entropy;
static long long counted[COUNT(total->counts)]; /* in this world */

static int
eq(const char *a, const char *b)
{
	return a == b || (a && b && !strcmp(a, b));
}

static void
countall(const char *what, size_t n)
{
	size_t i;

	for (i = 0; total->counts[i].what && !eq(total->counts[i].what, what); i++)
		;
	total->counts[i].what = what;
	total->counts[i].n += (long)n;
	counted[i] += (long long)n;
}

static void
count(const char *what)
{
	countall(what, 1);
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

/* ---- memory of the world and the program, freed at the end as a whole ---- */

static struct block {
	struct block *next, *prev;
	size_t size, magic;
} blocks;

static void *
mem(size_t n)
{
	struct block *b = calloc(1, sizeof(*b) + n);

	if (!b)
		abort();
	*b = (struct block){ &blocks, blocks.prev, n, 0x600d600d };
	b->prev->next = b->next->prev = b;
	return b + 1;
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

static const char *
env(const char *name)
{
	return getenv(name) ? getenv(name) : "";
}

/* Tell whoever has to replay a failure what world it is. */
static void
tellworld(void)
{
	int i;

	fprintf(stderr, "seed %llu, build %d, wild %d: choice %d relay %d keepalive %u backoffmax %u "
	        "patience %u askmin %u askmax %u refresh %u answertime %u stall %u retry %u sticktime %u "
	        "prefix '%s' addresses %d target %s;", (unsigned long long)theseed, BUILD, wild, choice,
	        relay, keepalive, backoffmax, patience, askmin, askmax, refresh, answertime, stall, retry,
	        sticktime, prefix, naddrs, target);
	for (i = 0; i < BEHAVIOURS; i++)
		if (on[i])
			fprintf(stderr, " %s", behaviours[i].name);
	fputc('\n', stderr);
}

/* Something does not hold. What is masked is passed over. */
static void
bad(const char *what, const char *f, ...)
{
	unsigned long i;
	va_list ap;

	if (listed(env("WORLDMASK"), what))
		return;
	for (i = nring > RING ? nring - RING : 0; !verbose && i < nring; i++)
		fprintf(stderr, "%s\n", ring[i % RING]);
	fprintf(stderr, "FAILED [%s] at %lld.%03lld: ", what, vt / 1000, vt % 1000);
	va_start(ap, f);
	vfprintf(stderr, f, ap);
	va_end(ap);
	fputc('\n', stderr);
	tellworld();
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
} *events;                      /* in the order of time, overtime() for ever */
static unsigned generation;

static void
at(long long when, void (*what)(void *, long), void *ptr, long arg, unsigned gen)
{
	struct event *e = mem(sizeof(*e)), **place = &events;

	when = MAX(when, vt);
	while (*place && (*place)->when <= when)
		place = &(*place)->next;
	*e = (struct event){ *place, when, what, ptr, arg, gen };
	*place = e;
}

static void speak(void);

static void
happen(void)
{
	struct event *e = events;

	events = e->next;
	vt = MAX(vt, e->when);
	if (!e->gen || e->gen == generation)
		e->what(e->ptr, e->arg);
	speak();
}

/* Let time pass until t, with all that happens. */
static void
pass(long long t)
{
	while (events->when <= t)
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

/* A part of one direction of a stream. */
enum { IHEADER, IHANDSHAKE, ISTANZA, IOTHER, IEND };
struct part {
	int what, step;
	struct stanza s;
	const char *why;
	long long said, end;    /* its last byte, as it was made, and on the wire */
};

/* One direction of a stream. */
struct seen {
	XML_Parser p;
	void (*opened)(const char **, int), (*got)(struct stanza *), (*end)(const char *);
	int depth, open, stopping;
	struct stanza s;
	int inerror, inshow;
	uint64_t h;             /* of the content so far */
	int brackets;           /* ] in a row were written last */
	struct { const char *name, *value; } decl[16]; /* of prefixes, in the header */
	size_t ndecl;
	char *text;             /* all of it, so many bytes */
	size_t fed, spoken, textcap; /* spoken: of the server's, so many have gone out */
	size_t owed;            /* bytes of white space that have to follow a large tag */
	struct part *q;
	size_t n, cap;
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
	XML_StopParser(d->p, XML_FALSE);
}

/* What is owed of white space behind a large tag has to be there by now. */
static void
checkwhite(const struct seen *d)
{
	if (d->owed > 0)
		bad("white", "%zu bytes of white space lack behind a tag of %zu: Prosody's expat holds it",
		    d->owed, d->s.tag);
}

static void
onattribute(struct seen *d, uint64_t *sum, const char *name, const char *value)
{
	d->s.rest += attrbytes(name, value);
	*sum += scramble(hashstring(hashstring(0x9ae16a3b2f90404f, name), value));
}

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

	if (++d->depth == 1) {
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

	if (d->depth < 2) {
		d->owed -= MIN(d->owed, (size_t)n);
		for (i = 0; i < n; i++)
			if (!strchr(" \t\r\n", t[i]))
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

/* Comments and the like; an XML declaration and the marks of CDATA may be there. */
static void XMLCALL
onother(void *data, const char *s, int n)
{
	if (strncmp(s, "<?xml ", 6) && strncmp(s, "<![", 3) && strncmp(s, "]]>", 3))
		stop(data, "what XMPP forbids");
}

static void
seenopen(struct seen *d, void (*opened)(const char **, int), void (*got)(struct stanza *),
         void (*end)(const char *))
{
	if (d->p)
		XML_ParserFree(d->p);
	*d = (struct seen){ XML_ParserCreate("UTF-8"), opened, got, end };
	XML_SetHashSalt(d->p, 1);
	if (XML_SetReparseDeferralEnabled)
		XML_SetReparseDeferralEnabled(d->p, XML_FALSE);
	XML_SetUserData(d->p, d);
	XML_SetElementHandler(d->p, onstart, onend);
	XML_SetCharacterDataHandler(d->p, ontext);
	XML_SetDefaultHandler(d->p, onother);
}

static void
seenfeed(struct seen *d, const char *s, size_t n)
{
	d->text = room(d->text, d->fed, n, &d->textcap, 1);
	memcpy(d->text + d->fed, s, n);
	d->fed += n;
	if (XML_Parse(d->p, s, (int)n, 0) != XML_STATUS_OK)
		stop(d, XML_ErrorString(XML_GetErrorCode(d->p)));
}

/* ---- JIDs, the model's own ---- */

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

/* 1 if jid is our domain's. */
static int
isours(const char *jid)
{
	const char *bare = bareof(jid), *res = resof(jid), *atsign = strchr(bare, '@');

	return !(res && !*res) && !(atsign && (atsign == bare || atsign - bare > 1023)) &&
	       eq(atsign ? atsign + 1 : bare, domain);
}

static int
oftarget(const char *jid)
{
	size_t n = strcspn(jid, "/");

	return n == strlen(target) && !memcmp(jid, target, n);
}

/* The JID that resource x of ours encodes, or NULL. */
static const char *
decode(const char *x)
{
	char *d, *n, *text, hex[3] = "";
	XML_Parser p;
	int ok;

	if (!x)
		return NULL;
	d = n = mem(strlen(x) + 1);
	text = mem(strlen(x) + 1);
	for (; *x; n++) {
		*n = *x++;
		if (*n == '%') {
			if (strspn(x, "0123456789abcdefABCDEF") < 2)
				return NULL;
			memcpy(hex, x, 2);
			*n = (char)strtol(hex, NULL, 16);
			x += 2;
		}
		if (*n >= 0 && *n < ' ')
			return NULL;
		text[n - d] = *n < 0 ? *n : 'x';
	}
	if (n == d || n - d > 1023)
		return NULL;
	/* of what is not ASCII expat knows whether it may be in XML */
	p = XML_ParserCreate("UTF-8");
	text = fmt("<x>%s</x>", text);
	ok = XML_Parse(p, text, (int)strlen(text), 1) == XML_STATUS_OK;
	XML_ParserFree(p);
	return ok ? d : NULL;
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
	unsigned long nth;      /* of all that have ever joined */
	long long heard;        /* by its presence */
	long long toldgone;     /* the log has said that it left */
	uint64_t share;         /* of all choices, when last chosen */
	int drains;             /* it shows dnd */
	int pings, doubtful;    /* since it was heard of; it may have been heard of since */
	long long life, lifehi; /* surely, and maybe, heard of, or given its first request */
	long long pinged, wellat; /* its last ping; since then it has not been set aside */
	long long pingedat, readat; /* in that turn of the loop; the server surely had it, or -1 */
	long long pingend;      /* byte of what the program makes that its last ping ends with */
	int trialat;            /* it is to be tried when they are more */
	unsigned long passed, changes; /* gets given to others since the last ping; who has
	                                * come or gone before */
};
static struct res *resbuckets[4096], *resources;
static long nin, nmaybe;        /* of them */
static unsigned long njoins, nleft, nbeen;
static uint64_t shares;

/* The subscription, and what the program has asked. Times are -1 for never. */
static const char *askids[4];   /* the last ones */
static unsigned long nasks, nsince; /* asks; since it was subscribed */
static int msub, sawpres;       /* sawpres: presence has come since */
static long long probe0, probe1, probe2, anyheard, lastask, deniedat;
static int lastprobe, npings;   /* the last ask was a probe; 1: a ping has followed it, 2: and
                                 * one when it was over */
static int followed;            /* and surely followed one that somebody had missed */
static int second;              /* it is for who missed the last, once over: the next is; -1: maybe */
static int answered;            /* it is over, and surely one who was there before has answered */
static int crowded;             /* somebody may have been ignored: who leaves starts a probe */
static enum { OPEN, DENIED, UNREACHED } probeend; /* how it is over */
static int doubted, unans;      /* one has left, maybe; a probe was unanswered, maybe */
static long long resubat, subat; /* it has subscribed anew, and since then surely no probe was
                                 * answered in time; the target has asked for its presence */
static int mayask;              /* there is a reason to ask again */
static long long svcat, svcsure; /* service-unavailable came; and surely was one */
static int counts, clean1;      /* of the last probe, who is silent; of the one before surely */
static long long back1, back2;  /* these were read again */
static long long turned1, askturn; /* the turns of the loop when back1 was, and when it asked */
static long long pingat;        /* it pinged for the probe */
static long long wantask;       /* at the latest */
static long long sawtype, prestook; /* presence of the target with a type was read, without
                                     * one taken */
static long long usrat;         /* the last signal to report that came in a call */
static long long lastheld;      /* it had to wait before it could write or read, or slept */
static long long onlineat, turnedat; /* this turn of the loop began */
static long long lastread;      /* something of the server's */
static size_t loglost;          /* lines that the log did not take, */
static size_t loguntold;        /* and those of them that it has not been told of */

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
	**r = (struct res){ .next = resources, .name = copy(name), .heard = -1, .left = -1 };
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
	int mistaken;           /* one of several has ended: which are open is unknown, too */
};

/* QDUE: it may have failed by now, for which there may be no error. QENDED: in nobody's
 * hands, while it is handed on. */
enum { QOPEN, QFAILING, QDUE, QERRED, QENDED };
struct req {
	struct req *alike, *prev, *next;
	struct key *key;
	const char *id;
	uint64_t places;        /* of the user in whose share it counts */
	struct res *res;        /* NULL: a user has it */
	int st, islong;         /* islong: there is no error for it */
	int get, times;         /* it may be handed on; given so often */
	int lost;               /* who has asked has left: it may have been forgotten */
	int bounced;            /* an error has come that says that its resource is not there; 2: it
	                         * counts though its key is vague */
	int jam;                /* its answer has come in a jam, maybe or 2: surely */
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
static struct ping {            /* to itself, whether what is due has come */
	struct ping *next;
	const char *id;
	long long asked, from;  /* written; due before that is meant */
} *pings;                       /* that are not back, the oldest first, or that are lost */
static long long lastping, pinged; /* the last, and the last not for silence, were written */
static int unrouted;            /* a ping to itself has come back as an error; 2: a current one */
static int astray;              /* one is lost, or has come back as no ping: */
static int astraydue;           /* that is due to be said, as one that was sent later is back; */
static int astraysaid;          /* it was said */
static long long duejudged, dueback, duepause; /* of the last that was back */
static long long slowback, slowsure; /* one was back, maybe and surely, that took longer than
                                     * stall: it says nothing of silence */
static long long countfrom, countasked, countback; /* the last that counts was sent, and was back */
static long long judgedby;      /* what was due when this was sent may be judged: that was back
                                 * before one was sent that is back, too */

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
		q->key->mistaken |= q->key->vague;
	}
	q->st = st;
	if (st == QERRED)
		q->nth = ++nerrs;
}

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
	q->places = w_places(r || !decode(resof(k->p)) ? k->f : decode(resof(k->p)));
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

/* Requests that were due by time t may have timed out, or those that are not plain, unseen. */
static void
doubtdue(long long t, int all)
{
	struct req *q;

	for (q = openlist.next; answertime && q != &openlist && deadline(q) <= t; q = q->next)
		if (all || !plain(q))
			doubt(q);
}

/* r leaves, or may have: so its requests fail, or may have; what it has asked itself may
 * have been forgotten with it. */
static void
abandon(const struct res *r, int st)
{
	const char *self = under(target, r->name);
	struct req *q;

	for EACHOPEN(q)
		if (!q->res && eq(q->key->f, self)) {
			q->lost = 1;
			doubt(q);
		} else if (q->res == r && (st == QFAILING || q->st == QOPEN)) {
			endreq(q, st);
		}
}

/* Who has been silent in two probes may have been taken out. */
static void
doubtsilent(void)
{
	struct res *r;

	for (r = resources; r; r = r->next)
		if (r->st != OUT && silentone(r)) {
			abandon(r, QDUE);
			setres(r, MAYBE);
		}
}

static void
leave(struct res *r)
{
	if (r->st == OUT)
		return;
	setres(r, OUT);
	abandon(r, QFAILING);
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
	int isin;

	if (strncmp(r->name, prefix, strlen(prefix)) || n == 0 || n > 1023)
		return;
	if (r->st == IN && r->left <= r->joinedat)
		return;
	r->doubtful |= r->pings > 0;
	r->lifehi = vt;
	if (r->st == OUT) {
		r->pings = r->doubtful = r->drains = 0;
		r->trialat = 4;
		r->wellat = vt;
		r->life = -FOREVER / 4; /* it may have joined before */
		r->pinged = -1;
	}
	/* if they are too many one may have left unseen */
	isin = nin + nmaybe < MAXRESOURCES + (r->st == MAYBE);
	crowded |= r->st != IN && !isin;
	if (r->st != IN)
		setres(r, isin ? IN : MAYBE);
	r->joined = ++njoins;
	r->nth = r->nth ? r->nth : ++nbeen;
	r->joinedat = vt;
	r->share = shares;
}

/* 1 if s is an error of a server that says of a client that it is not there. */
static int
bounces(const struct stanza *s)
{
	return eq(s->type, "error") && eq(s->cond, "recipient-unavailable");
}

/* 1 if s is an error of a server that says of another that it is out of reach. */
static int
isunreachable(const struct stanza *s)
{
	return eq(s->type, "error") && !strncmp(s->cond, "remote-server-", 14);
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

/* How many of the open requests count as a requester's, by its bare JID, or with NULL
 * anybody's: surely, or maybe. */
static long
shareof(const char *f, int surely)
{
	uint64_t places = f ? w_places(f) : 0;
	struct req *q;
	long n = 0;

	for EACHOPEN(q)
		n += (!f || q->places == places) && (!surely || (q->st == QOPEN && !q->key->vague &&
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

static int jammed;              /* it reads and refuses, as the server reads nothing */
static size_t nout;             /* bytes in its buffer, of which some may be written */
static long long jammedat;      /* when it was last seen so */

/* Why requests are refused, and how it is said. */
static const struct {
	const char *cond, *type;
} conditions[] = {
	{ "service-unavailable", "cancel" }, { "feature-not-implemented", "cancel" },
	{ "not-acceptable", "modify" }, { "policy-violation", "modify" },
	{ "resource-constraint", "wait" }, { "recipient-unavailable", "wait" },
	{ "remote-server-timeout", "wait" }, { "bad-request", "modify" }
};

/* How many inputs have had their effect, have arrived, were read, and were taken in by
 * the program's parser. */
static size_t ihead, iarr, inread, iread;

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

	return head + s->rest > MAXSTANZA ? 2 : isfull(head + MIN(s->tag, s->rest), s->rest);
}

/* It passes, or is too large: who waits for an answer, or has sent it, is told so. */
static void
passes(struct expect *e, const struct stanza *s, const char *from, const char *to)
{
	int large = toolarge(s, from, to);
	const char *cond = jammed ? "resource-constraint" : "policy-violation";

	if ((jammed || large) && isanswer(s))
		may(e, AERR, s, "error", from, to, cond);
	else if (jammed || large)
		mayerr(e, s, cond);
	if (!jammed && large < 2)
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
	if (jammed && src) {
		mayerr(e, s, "resource-constraint");
		return;
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

/* 1 if surely a request of key k is open, and surely none with resource r. One that is
 * too long for an error from us may have ended unseen. */
static int
holdsnone(const struct key *k, const struct res *r)
{
	const struct req *q;
	int open = 0, held = k->mistaken;

	for (q = k->reqs; q; q = q->alike) {
		open |= (q->st == QOPEN || q->st == QFAILING) && !q->islong;
		held |= q->st == QFAILING || q->st == QERRED ? 0 : q->res == r;
	}
	return open && !held;
}

/* An answer from src to requester f, maybe that of resource r's request. */
static void
leading(struct expect *e, const struct stanza *s, const char *src, const char *f, struct res *r)
{
	struct key *k = findkey(f, src, s->id);
	int alike, forgotten, err = eq(s->type, "error");
	struct req *q = findreq(k, r, &alike);

	e->key = k;
	e->q = q;
	if (k->vague)
		e->must = 0;
	/* the error of who had it before was expected */
	if (r && err && holdsnone(k, r)) {
		e->must = 0;
		e->q = NULL;
		return;
	}
	if (q) {
		if (r && err && ((q->st == QFAILING && !q->islong) || q->res != r ||
		    (q->get && (q->st != QOPEN || mayhavemoved(q) || bounces(s)))))
			e->must = 0;
		/* what a worker has asked before it left is forgotten, or still open */
		forgotten = q->lost && q->st == QDUE;
		if ((q->lost && !forgotten) || alike > 1)
			e->must = 0;
		/* so lately that the program has to know it still an error took its place */
		if (plain(q) && q->st == QERRED &&
		    (long)(nerrs - q->nth) + nopenhi - nopenlo < MAXREQUESTS) {
			e->must = 0;
			return;
		}
		/* of one that is too long for an error from us the answer always passes */
		if (!q->islong && ((q->st != QOPEN && !forgotten) || (answertime && vt >= deadline(q)) ||
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
predict(struct part *i, struct expect *e)
{
	const struct stanza *s = &i->s;
	struct stanza led = *s;
	const char *self, *below, *other, *src;
	struct res *r;
	int mine;

	memset(e, 0, sizeof(*e));
	if (i->what != ISTANZA || !s->from || !*s->from || !s->to || !*s->to || s->nons ||
	    !isours(s->to) || isours(s->from))
		return;
	self = bareof(s->to);
	below = resof(s->to);
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
	} else if (s->flags & KCARBON) {
		;
	} else if (!relay || (mine && !below)) {
		mayerr(e, s, "feature-not-implemented");
	} else if (mine && other) {
		passes(e, s, self, other);
	} else if (!mine && !below) {
		forclient(e, s, self);
	} else {
		mayerr(e, s, "service-unavailable");
	}
	if (e->n == 0 || (jammed && e->q) || (jammed && nout + 6 * headbytes(s->kind, "error", s->id, s->from, s->to) + 5000 > OUTSIZE))
		e->must = 0;
}

/* ---- the model: whom the setting choice may choose ---- */

static struct stick {           /* who was served last, by whom */
	struct stick *next;
	const char *who;
	struct res *res;
	unsigned long joined, seq0; /* how many had joined when it was free to choose */
	unsigned long been;     /* and how many different ones */
	long long at;
} *sticks;
static struct res *charge;      /* with STANDBY */
static int hashandicaps;        /* something spoke against somebody, once */
static unsigned long chargejoined, nmoved;

/* 1 if it is to be tried, and has been so for that many pings. */
static int
isdue(const struct res *r, int since)
{
	return r->pings > r->trialat + since;
}

/* Resource r is given a request. If it has been stalled for long that is a trial, whether
 * meant as one or not. */
static void
isgiven(struct res *r)
{
	if (r->open == 0 || r->pings > 1)
		r->lifehi = vt;
	if (isdue(r, 0)) {
		r->trialat = 2 * r->pings - 1;
		r->pingedat = r->readat < 0 ? turnedat : r->pingedat;
	}
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
	if (isdue(r, get > 0 ? 0 : 3) && get >= 0 && choice != STANDBY && better(r, 0) &&
	    (get > 0 || (!relay && choice != STICKY)))
		return 1;
	if (stalled(r) && better(r, 0))
		bad("stall", "%s is set aside and is given a request", r->name);
	if (r->drains && known(r) == 1 && better(r, 1) && !relay && get > -2)
		bad("drain", "%s drains and is given a request", r->name);
	if (n == 1 && get == 2 && aside != r && stalled(aside) && isdue(aside, 2) && !aside->drains &&
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

/* 1 if nothing speaks against anybody. */
static int
isfair(void)
{
	struct res *r;

	for (r = resources; r && !handicapped(r); r = r->next)
		;
	hashandicaps |= r != NULL;
	return !r;
}

static struct stick *
stickof(const char *who)
{
	struct stick *l;

	for (l = sticks; l && !eq(l->who, who); l = l->next)
		;
	if (!l) {
		l = mem(sizeof(*l));
		*l = (struct stick){ .next = sticks, .who = who, .at = onlineat };
		sticks = l;
	}
	return l;
}

/* A request was refused, but only after somebody was chosen for it, who stays. */
static void
unseenchoice(const char *who)
{
	struct stick *l = stickof(who);

	if (!isfair() || vt > l->at + sticktime * 1000LL - 3000) {
		l->res = NULL;
		l->seq0 = 0;
	}
	l->at = vt;
}

/* Who was served lately, or never by who has joined since, stays. */
static void
checkstick(const char *who, struct res *r, int fair, int sure)
{
	struct stick *l = stickof(who);
	struct res *x;
	long long until;
	int stayed, free, joined = 0;

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
	/* of who joins again it is known whom he is preferred to */
	for (x = resources; x; x = x->next)
		joined += x->st == IN && x->nth > l->been;
	if (free && fair && nmaybe == 0 && (l->res == r || stayed)) {
		total->tomove += (double)joined / (double)nbeen;
		total->moved += l->res != r && r->nth > l->been;
	}
	/* before this connection somebody else may have been chosen */
	l->seq0 = free ? njoins : l->seq0;
	l->res = r;
	l->joined = r->joined;
	l->been = nbeen;
	l->at = vt;
}

/* Who has it must be whom the setting choice says; get as above. */
static void
checkchoice(const char *stays, int get, struct res *r)
{
	int fair, sure = !on[PARTPROBE] && !on[NOPROBE] && !on[LATEPROBE];
	struct res *x;

	/* also if it is tried, as who else was chosen is remembered; who has it at second hand
	 * is not */
	fair = get > -2 && isfair();
	if (checkhandicap(r, get))
		return;
	if (choice == STANDBY) {
		if (charge && charge != r && charge->joined == chargejoined && well(charge) &&
		    !charge->drains && sure)
			bad("standby", "a request goes to %s, and %s is in charge", r->name, charge->name);
		charge = handicapped(r) ? NULL : r;
		chargejoined = r->joined;
	} else if (stays) {
		checkstick(stays, r, fair, sure);
	} else if (choice == LEASTBUSY && nmaybe == 0 && nmistaken == 0 && fair) {
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
	struct res *r;

	openlist.prev = openlist.next = &openlist;
	memset(keys, 0, sizeof(keys));
	memset(askids, 0, sizeof(askids));
	pings = NULL;
	for (r = resources; r; r = r->next)
		*r = (struct res){
			r->chain, r->next, r->name, .nth = r->nth, .heard = -1, .left = -1
		};
	charge = NULL;
	sticks = NULL;
	ihead = iarr = iread = inread = 0;
	nasks = nsince = nmoved = 0;
	nin = nmaybe = nopenlo = nopenhi = nmistaken = 0;
	shares = hashandicaps = 0;
	second = answered = unrouted = astray = astraydue = astraysaid = 0;
	msub = sawpres = mayask = lastprobe = followed = crowded = npings = doubted = unans = counts = clean1 = 0;
	probeend = OPEN;
	probe0 = probe1 = probe2 = anyheard = lastask = deniedat = back1 = back2 = sawtype = prestook = pingat = -1;
	resubat = subat = -1;
	lastread = 0;
	jammed = 0;
	lastheld = usrat = onlineat = dueback = slowback = slowsure = pinged = -1;
	countfrom = countasked = countback = judgedby = duejudged = -1;
	svcat = svcsure = jammedat = -FOREVER / 4;
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

/* It has to probe, at once or when the probe that is out is over. */
static void
wantprobe(void)
{
	if (probeend == UNREACHED || (probeend == OPEN && (!lastprobe || back2 >= 0)))
		want(vt);
	else
		doubted |= lastask < vt && probeend == OPEN;
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
	msub = doubted = unans = second = 0;
	resubat = -1;
}

/* Resource r has sent s itself: it does not hang. */
static void
sends(struct res *r, const struct stanza *s)
{
	r->lifehi = vt;
	/* a server may say so */
	if (bounces(s) || isunreachable(s))
		return;
	if (headbytes(s->kind, s->type, s->id, s->from, s->to) + 300 > MAXSTANZA) {
		r->doubtful |= r->pings > 0;    /* it may be dropped unread */
		return;
	}
	if (r->pings >= 2) {
		r->wellat = vt;
		nleft++;        /* who is to be tried may be found anew */
	}
	r->pings = r->doubtful = 0;
	r->trialat = 4;
	r->life = vt;
}

/* Presence of the target: what becomes of its resources. */
static void
heardof(const struct stanza *s, struct res *r)
{
	sawpres = 1;
	/* that nobody is there may be the answer to a probe */
	mayask |= back2 >= 0 || (s->type && (!eq(s->type, "unavailable") || nin + nmaybe > 0));
	if (eq(s->type, "subscribe")) {
		subat = vt;
		if (!msub)
			want(vt + 500);
	}
	if (!eq(s->to, domain))
		return;
	if (!s->type || eq(s->type, "unavailable"))
		prestook = vt;
	if (!s->type && r) {
		if (silentone(r)) {
			abandon(r, QDUE);
			r->left = vt;
		}
		r->heard = anyheard = vt;
		joins(r);
		if (r->drains && !eq(s->show, "dnd"))
			nleft++;        /* who is to be tried may be found anew */
		r->drains = eq(s->show, "dnd");
		if (r->drains && charge == r)
			charge = NULL;
	} else if (eq(s->type, "unavailable")) {
		/* it may have a new session */
		if (msub && r && known(r) == 1 && r->left < r->joinedat)
			wantprobe();
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
		if (r || !s->id || !eq(s->id, lastid()))
			return;
		if (!eq(s->etype, "wait") && !isunreachable(s)) {
			denied();
		} else if (probeend == OPEN) {
			want(doubted && back2 < 0 ? vt : vt + refresh * 1000LL);
			probeend = UNREACHED;
			second = 0;
		}
	}
}

/* The ping to itself that has come back with s, or NULL. */
static struct ping *
findping(const struct stanza *s)
{
	struct ping *p = pings;

	while (p && !(eq(p->id, s->id) && s->from && eq(s->from, domain)))
		p = p->next;
	return p;
}

/* Ping p to itself is back, and those before it will not be: these may be given up now,
 * and be told so later in this turn. */
static void
dueisback(const struct ping *p)
{
	struct res *r;

	dueback = vt;
	duepause = turnedat;
	if (turnedat - p->from > stall * 1000LL - 100)
		slowback = vt;
	if (turnedat - p->from > stall * 1000LL)
		slowsure = vt;
	if (p->from > countback) {
		judgedby = countfrom;
		duejudged = countasked;
		countfrom = p->from;
		countasked = p->asked;
		countback = turnedat;
	}
	pings = p->next;
	for (r = resources; r; r = r->next)
		if (r->readat < 0 && p->from > r->pingedat)
			r->readat = vt;
	doubtdue(judgedby + slack(100), 1);
}

/* An error has come from r that may be a server's: that is a reason to probe, at times. */
static void
serviceless(struct res *r, const struct stanza *s, const struct expect *e)
{
	int surely = e->key && isanswer(s) && known(r) == 1 && msub && s->elements <= 200 &&
	             r->left < r->joinedat;

	mayask |= vt >= svcsure + askmin * 1000LL - 100;
	if (surely && vt > svcat + askmin * 1000LL + 100) {
		svcsure = vt;
		wantprobe();
	}
	svcat = vt;
}

/* 1 if it surely has been given no request since it was heard of. What is too long
 * to be kept times out unseen. */
static int
idle(const struct res *r)
{
	return r->risky == 0 && r->pings == 0 && !r->doubtful && nmistaken == 0 &&
	       (!answertime || vt < onlineat + answertime * 1000LL);
}

/* An error has come that says that resource r, which has q or had it, is not there. Of
 * several that are the same in all, each such error is for another. */
static void
bounce(struct req *q, struct res *r)
{
	int same = q->res == r;
	struct req *x;

	for (x = q->key->reqs; x; x = x->alike)
		same &= (x->st == QOPEN || x->st == QERRED) && x->get && x->res == q->res &&
		        x->times == q->times && x->pay == q->pay && eq(x->id, q->id);
	for (x = q->key->reqs; x && q->bounced && same; x = x->alike)
		q = x->st == QOPEN && !x->bounced ? x : q;
	q->bounced = 1 + same;
}

/* Input i has been handled, with output o by alternative a, or with none. */
static void
took(struct part *i, struct expect *e, const struct alt *a, const struct stanza *o)
{
	const struct stanza *s = &i->s;
	struct ping *p;
	struct req *q = e->q;
	struct res *r;
	int ours, sure;

	ihead++;
	if (i->what == IHANDSHAKE) {
		onlineat = vt;
		count("connections");
	}
	if (i->what != ISTANZA || !s->from || !s->to)
		return;
	p = findping(s);
	if (p && eq(s->to, domain) && !eq(s->type, "error"))
		dueisback(p);
	r = resourceof(s->from);
	ours = !s->nons && isours(s->to);
	if (r && ours && !eq(s->kind, "presence"))
		sends(r, s);
	if (r && (isunreachable(s) || eq(s->cond, "service-unavailable")))
		serviceless(r, s, e);
	if (oftarget(s->from) && ours && eq(s->kind, "presence"))
		heardof(s, r);
	if (e->stays && (!a || a->w == AERR))
		unseenchoice(e->stays);
	if (a && a->w != AERR && eq(s->kind, "message"))
		count("messages");
	if (a && a->w == AFWD && isanswer(s))
		count("answers");
	if (a && a->w != AERR && isask(s)) {
		r = a->w == ARES ? resource(resof(o->to)) : NULL;
		if (r) {
			checkchoice(e->stays, e->fits && retry ? 1 + (s->rest + 20 < REQUESTSIZE / 2) : 0, r);
			isgiven(r);
			r->life = idle(r) ? vt : r->life;
		}
		q = addreq(e->key, s->id, r);
		q->get = e->fits;
		q->pay = s->pay;
		count("requests");
	} else if (a && a->w == ARES) {
		checkchoice(e->stays, -1, resource(resof(o->to)));
	} else if (q && jammed && !a && q->st != QERRED) {
		/* it is told so once there is room, if this was for it */
		sure = eq(s->type, "result") || !q->res ? q->st != QDUE :
		       q->st == QOPEN && q->res == r && !mayhavemoved(q) && !bounces(s);
		q->jam = MAX(q->jam, 1 + sure);
		if (q->get && bounces(s))
			bounce(q, r);
		doubt(q);
	} else if (q && q->st != QERRED && (a || (q->res && (!eq(s->type, "error") ||
	           (!q->get && q->res == r && q->st == QOPEN && known(r) == 1))))) {
		if (a && q->res && q->res == r && plain(q) && q->get && q->times <= (int)retry && bounces(s) &&
		    choice != STANDBY && nin > 1 && s->elements <= 200)
			bad("retry", "an error for a get of %s passes, and others could be asked", q->key->f);
		q->lost |= q->islong;   /* another answer may pass */
		endreq(q, QERRED);
	} else if (q && q->res && q->get && bounces(s)) {
		bounce(q, r);
	} else if (q && q->st != QERRED && q->res == r && !q->get) {
		doubt(q);       /* if r had left before, it fails by itself */
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
	if (a->w == AERR)
		return eq(a->cond, o->cond) && o->elements == 2 && eq(a->id, o->id);
	return eq(a->id, o->id) && a->pay == o->pay && (a->w == AFWD || resourceof(o->to));
}

/* Handle the next input without an output; 0 if it needs one. */
static int
skip(void)
{
	struct part *i = sin_.q + ihead;
	struct expect e;

	if (ihead >= iread || i->what == IHEADER || i->what == IEND)
		return 0;
	predict(i, &e);
	if (e.must)
		return 0;
	took(i, &e, NULL, NULL);
	return 1;
}

/* ---- the model: what the program says by itself ---- */

/* 1 if o is an error that ends a request which its resource has not answered. */
static int
isfailure(struct stanza *o)
{
	int gone = eq(o->cond, "recipient-unavailable"), late = eq(o->cond, "remote-server-timeout");
	int busy = eq(o->cond, "resource-constraint"), n = 0;
	struct key *k = findkey(o->to, o->from, o->id);
	struct req *q, *best = NULL, *oldest = NULL;

	if (!eq(o->kind, "iq") || !eq(o->type, "error") || (!gone && !late && !busy) || o->elements != 2)
		return 0;       /* those that others made have a text */
	for (q = k->reqs; q; q = q->alike) {
		if (q->st == QERRED || !eq(q->id, o->id))
			continue;
		n++;
		oldest = q;
		if (busy ? q->jam : late ? vt + slack(100) >= deadline(q) : q->st == QFAILING || q->bounced ||
		    (q->res && (known(q->res) != 1 || q->res->left >= q->given)))
			best = q;
	}
	if ((busy ? !best : !oldest) && !k->vague)
		return 0;
	count(busy ? "resource-constraint" : late ? "remote-server-timeout" : "recipient-unavailable");
	if (!oldest)
		return 1;
	k->vague |= n > 1;
	if (!best && !k->vague && late)
		bad("early", "a request of %s is timed out %lld ms after it was handed out", o->to,
		    vt - oldest->written);
	if (!best && !k->vague)
		bad("sweep", "a request of %s fails as if %s had left, which it has not: "
		    "%lld ms since its presence, %lld since the last probe but one", o->to,
		    oldest->res ? oldest->res->name : "nobody", oldest->res ? vt - oldest->res->heard : 0,
		    vt - probe1);
	q = best ? best : oldest;
	if (gone && !k->vague && q->get && q->times <= (int)retry && q->st == QFAILING && anyknown())
		bad("retry", "a get of %s fails, and others could be asked", o->to);
	/* of all that had come by then the ping to itself that is back came last */
	if (late && !k->vague && duejudged < deadline(q) - slack(0))
		bad("judged", "a request of %s is timed out, but what may have come since %lld was not "
		    "waited for", o->to, duejudged);
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
	if (r->pinged > lastheld && vt - r->pinged < least)
		bad("stall", "pings %s %lld ms after the last ping", r->name, vt - r->pinged);
	if (r->pings > 0 && !r->doubtful && r->readat < 0)
		bad("stall", "pings %s again, and the server may not have the last ping", r->name);
	if (idle(r))
		bad("stall", "pings %s, which has no request", r->name);
	if (slowsure >= 0 && vt - slowsure < least)
		bad("stall", "pings %s %lld ms after a slow ping to itself", r->name, vt - slowsure);
	if (judgedby < (r->pings > 0 && !r->doubtful ? r->readat : r->life) + least)
		bad("judgedby", "pings %s %lld ms after it was heard of, but of what it may have said only "
		    "what came %lld ms ago was waited for", r->name, vt - r->life, vt - judgedby);
	r->pings++;
	r->passed = 0;
	r->changes = njoins + nleft;
	if (r->pings > 1 && charge == r)
		charge = NULL;
	r->pinged = vt;
	r->pingedat = turnedat;
	r->pingend = madeend;
	r->readat = -1;
	return 1;
}

/* 1 if presence of r was read that may have had its effect already. */
static int
shown(const struct res *r)
{
	const struct part *i;

	for (i = sin_.q + ihead; i < sin_.q + inread; i++)
		if (i->what == ISTANZA && eq(i->s.kind, "presence") && resourceof(i->s.from) == r)
			return 1;
	return 0;
}

/* 1 if o is a get that is handed on to another resource, 2 if it may be. */
static int
isretry(struct stanza *o)
{
	struct req *q, *best = NULL;
	const char *f = decode(resof(o->from));
	struct res *r = resourceof(o->to), *x;
	struct key *k;
	int n = 0;

	if (!r || !eq(o->kind, "iq") || !eq(o->type, "get") || !f)
		return 0;
	k = findkey(f, bareof(o->from), o->id);
	for (q = k->reqs; q; q = q->alike)
		if (q->st < QERRED && q->get && q->pay == o->pay && q->times <= (int)retry && eq(q->id, o->id)) {
			n++;
			best = mayhavemoved(q) && !(best && best->bounced > q->bounced) ? q : best;
		}
	if (!best)
		return k->vague ? 2 : 0;
	k->vague |= n > 1;
	k->mistaken |= n > 1;
	q = best;
	if (!k->vague && r == q->res && r->left < q->given && (q->bounced ||
	    (q->st != QFAILING && known(r) == 1 && r->wellat < r->pinged)))
		bad("retry", "a get of %s is handed on to %s, which has it, or bounced it", f, r->name);
	for (x = resources; choice != STANDBY && !k->vague && !r->doubtful && x; x = x->next)
		if (x != q->res && known(x) == 1 && !handicapped(x) && !shown(x) &&
		    (r->pings > x->pings || (r->drains && !shown(r))))
			bad("retry", "a get of %s is handed on to %s, which is silent or drains; %s is well", f,
			    r->name, x->name);
	if (q->bounced && !known(r))
		bad("choice", "a request goes to %s, which has left", r->name);
	if (!q->bounced)
		checkchoice(NULL, -2, r);
	isgiven(r);
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
	struct ping **last = &pings;

	if (!eq(o->kind, "iq") || !eq(o->type, "get") || !eq(o->from, domain) || !eq(o->to, domain) ||
	    !(o->flags & KPING))
		return 0;
	if (!keepalive || turnedat < lastread + keepalive * 1000LL - slack(2)) {
		if (dueback >= 0 && turnedat < duepause + 100)
			bad("duesoon", "asks again what is due %lld ms after the last answer", turnedat - duepause);
		if (pinged > MAX(dueback, lastheld) && vt < pinged + patience * 1000LL - slack(20))
			bad("duesoon", "asks again what is due %lld ms after the last time", vt - pinged);
		pinged = vt;
	}
	if (lastprobe && npings == 0)
		npings = 1;
	if (npings == 1 && back1 >= 0 && turnedat >= turned1 + patience * 1000LL)
		npings = 2;
	if (lastprobe && back2 < 0)
		pingat = vt;
	while (*last)
		last = &(*last)->next;
	*last = mem(sizeof(**last));
	**last = (struct ping){ NULL, copy(o->id), lastping = vt, turnedat };
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

/* 1 if o asks for the target's presence. */
static int
ispresenceask(struct stanza *o)
{
	int probe = eq(o->type, "probe"), over = back2 >= 0 && probeend == OPEN, silent = 0, clean;
	int follows;
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
	if (!probe && msub && !unans)
		bad("ask", "subscribes anew though no probe was unanswered but a second one");
	follows = probe && lastprobe && !on[SLOWCALL] && iarr == iread &&
	          gap < refresh * 1000LL - 100 && !mayask && lastheld < lastask;
	if (follows && !silent)
		bad("askrate", "probes again after %lld ms for no reason", gap);
	if (follows && followed && !crowded)
		bad("askrate", "probes again after %lld ms for who missed a second probe", gap);
	followed = follows;
	/* else it may be late by no fault of its own */
	if (nasks > 0 && !msub && !sawpres && vt < nextask() - 20 && !on[ASLEEP] && !on[STALL] &&
	    !on[SLOWLINK] && !on[SLOWCALL] && !on[SMALLBUF] && !on[LOSS])
		bad("askrate", "asks again %lld ms too early", nextask() - vt);
	nsince++;
	askids[nasks++ % COUNT(askids)] = copy(o->id);
	count("asks for presence");
	if (probe)
		doubtsilent();
	/* over, and with presence in it: who was silent in two such has left */
	clean = counts && over && lastheld < lastask && !on[SLOWCALL];
	for (r = probe && clean && answered && clean1 && !loglost ? resources : NULL; r; r = r->next)
		if (r->st == IN && r->heard < probe1 && r->joinedat < probe1 && r->toldgone < probe1 &&
		    strlen(r->name) < 90 && !strpbrk(r->name, "%\xc3"))
			bad("stays", "%s was silent in two probes, and is kept", r->name);
	clean1 = clean && prestook > lastask;
	counts = probe && (!lastprobe || (back2 >= 0 && probeend != UNREACHED));
	/* one that could not reach the target does not count */
	if (probe && (!lastprobe || probeend != UNREACHED || lastheld >= lastask)) {
		probe0 = probe1;
		probe1 = probe2;
	}
	if (probe)
		probe2 = vt;
	else /* all begin anew */
		probe0 = probe1 = probe2 = -1;
	second = probe ? second : 0;
	if (!probe && resubat >= 0 && vt < resubat + refresh * 1000LL - 100 && !crowded && !on[SLOWCALL] &&
	    MAX(MAX(subat, svcat), lastheld) < resubat)
		bad("askrate", "subscribes anew %lld ms after the last time, and nobody has answered", vt - resubat);
	if (!probe && msub) {
		resubat = vt;
		unans = 1;
	}
	mayask &= !lastprobe || back2 < 0 || sawtype >= back2;
	lastask = vt;
	askturn = turnedat;
	lastprobe = probe;
	npings = doubted = answered = 0;
	probeend = OPEN;
	back1 = back2 = -1;
	wantask = FOREVER;
	return 1;
}

/* The program has written stanza o: find out of what it comes. */
static void
check(struct stanza *o)
{
	struct part *i = sin_.q + ihead;
	struct expect e = { .n = 0 };
	int a = 0, retried;
	size_t k;

	if (!o->from || !isours(o->from))
		bad("from", "writes a stanza from %s", shorten(o->from));
	if (!o->to || !*o->to)
		bad("from", "writes a stanza to nobody");
	doubtdue(vt + 100, 0);
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
static struct {
	int open, fd, connecting, connected, error, addr, dead, tls, badpin, blocked;
	long long since, connectedat;
	/* towards the server: bytes taken from the program, of these gone */
	long long wtotal, wgone, wcap, wlow, wstall;
	unsigned wrate, rrate, latency;
	int wpending, wshut, rpending, rst, fin, wfail;
	size_t plain;           /* so much the TLS server has made of the program's records */
	size_t ohead, owritten; /* so many parts were served, are written */
	/* from the server: bytes sent, arrived, read by the program */
	unsigned char *raw;
	size_t rawcap;
	long long sent, came, took, rcap, rstall;
	long long badfrom;      /* where what ends the stream begins, or -1 */
	long long costlyfrom;
	int ended, saiderror, allocfailed, quiet, scripted, shaken, hsread, blind, deaf, coupled;
	int closing;            /* the program has said why it ends the stream */
	long long endedat, hsreadat, lastwrite, stuckat;
	long long takesat;      /* since when it takes something more; -1: nothing is known */
	const char *id;         /* of the stream */
	int depth;              /* of the program's parser */
} c;
static unsigned long long made; /* bytes that it has made, all in all */
static int addrs[NADDR], nextaddr;
static int roundsaid, rounds, saidrounds, mostrounds, unprovedmaybe;
static enum { UNPROVED, PROVED, MAYBEPROVED } proved; /* the last connection has lasted */
static long long lastend = -1;
static long outagelines, progress;

static long long healtime;
static void (*handlers[65])(int);
static int wakebytes, resolving, termonline, goodbye;
static long long termat, stoppedms, refusedat; /* last, a call had to be repeated */
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

static void serve(struct part *), servergreets(void), handle(int);

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

/* An event: the server ends the connection, with FIN, or at once. */
static void
cut(void *why, long reset)
{
	if (!linked())
		return;
	note("network: %s", (const char *)why);
	c.fin = !reset;
	c.rst = (int)reset;
	if (reset && rnd(2))
		c.came = c.sent = c.took;
	progress++;
}

/* The proxy has ended the connection, or its side of it. */
static void
serverlost(char *why)
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
	if (c.dead || c.rst || n <= 0)
		return;         /* reading goes on with it */
	if (c.rstall > vt) {
		arrives(c.rstall);
		return;
	}
	n = portion(n, c.rrate);
	if (fault(SPLIT, 700))
		n = 1 + rnd(n > 4000 && often(800) ? 4000 : n > 60 && often(500) ? 60 : (unsigned)n);
	c.came += n;
	for (; iarr < sin_.n && sin_.q[iarr].end <= c.came; iarr++)
		;
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
	/* it reads nothing while it waits to write, but a socket's buffer may grow, of
	 * which poll() says nothing */
	if (c.coupled && !healed && c.sent - c.came > c.rcap) {
		if (c.coupled == 1 && rnd(4) == 0) {
			c.coupled = 2;
			c.wcap += c.wcap / 4;
			c.takesat = vt;
		}
		drains(vt + 20);
		return;
	}
	c.wgone += n;
	c.takesat = c.takesat < 0 ? vt : c.takesat;
	for (; c.ohead < sout.n && sout.q[c.ohead].end <= c.wgone && linked(); c.ohead++)
		serve(sout.q + c.ohead);
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
	struct part *o;
	struct req *q;

	if (n > sout.fed || memcmp(sout.text + n - k, b, k))
		bad("written", "writes other bytes than it has made");
	while (c.owritten < sout.n && sout.q[c.owritten].said <= (long long)n) {
		o = sout.q + c.owritten++;
		o->end = c.tls ? c.wtotal : o->said;
		goodbye |= o->what == IEND;
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
	size_t i, n;
	unsigned char *b;

	if (!linked())
		sin_.spoken = sin_.fed;
	if (!c.tls && sin_.spoken < sin_.fed)
		sendraw(sin_.text + sin_.spoken, sin_.fed - sin_.spoken);
	while (c.tls && sin_.spoken < sin_.fed) {
		pump();
		if (!(b = br_ssl_engine_sendapp_buf(&sc.eng, &n)))
			break;
		n = MIN(n, sin_.fed - sin_.spoken);
		memcpy(b, sin_.text + sin_.spoken, n);
		br_ssl_engine_sendapp_ack(&sc.eng, n);
		br_ssl_engine_flush(&sc.eng, 0);
		sin_.spoken += n;
		pump();
		for (i = sin_.n; i > 0 && sin_.q[i - 1].end == FOREVER; i--)
			;
		for (; i < sin_.n && sin_.q[i].said <= (long long)sin_.spoken; i++)
			sin_.q[i].end = c.sent;
	}
	sin_.spoken = sin_.fed;
}

/* The server says that: it goes out with the next speak(). */
static void
says(const char *s)
{
	if (linked() && !sin_.stopping)
		seenfeed(&sin_, s, strlen(s));
}

/* Where what expat is at ends. */
static long long
position(const struct seen *d)
{
	return XML_GetCurrentByteIndex(d->p) + XML_GetCurrentByteCount(d->p);
}

/* There is a next part, which ends with that byte. */
static struct part *
newpart(struct seen *d, int what, long long said)
{
	long long end = d == &sout || c.tls ? FOREVER : said;

	d->q = room(d->q, d->n, 1, &d->cap, sizeof(*d->q));
	d->q[d->n] = (struct part){ .what = what, .said = said, .end = end };
	return d->q + d->n++;
}

static void
end_in(const char *why)
{
	newpart(&sin_, IEND, (long long)sin_.fed)->why = why ? copy(why) : "the server closes the stream";
	/* the program may see it before its last byte: so what was sent with it counts */
	c.badfrom = c.sent;
}

static void
opened_in(const char **a, int ok)
{
	if (!ok || !attribute(a, "id")) {
		stop(&sin_, "a header that is none");
		return;
	}
	newpart(&sin_, IHEADER, position(&sin_));
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
	struct part *i;

	if (eq(s->kind, "stream:error") || (!c.shaken && isroutable(s))) {
		stop(&sin_, s->cond);
		i = sin_.q + sin_.n - 1;
		i->said = s->end;
		i->end = c.tls ? FOREVER : s->end;
		return;
	}
	i = newpart(&sin_, IOTHER, s->end);
	i->s = *s;
	if (c.shaken && isroutable(s) && !s->nons)
		i->what = ISTANZA;
	if (!c.shaken && eq(s->kind, "handshake")) {
		i->what = IHANDSHAKE;
		c.shaken = 1;
	}
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
	newpart(&sout, IHEADER, position(&sout));
	signals();
}

/* Why the connection may end, or NULL. */
static const char *
reason(void)
{
	long long patient = c.connectedat + patience * 1000LL - 1;
	int unread = c.came > c.took && vt > slept && refusedat < turnedat;

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
	if (unrouted)
		return "its ping has failed";
	if (c.connected && (!c.hsread || c.hsreadat >= patient) && vt >= patient)
		return "no handshake in time";
	if (c.badpin || c.quiet || (c.blind && (c.took == c.sent || !c.hsread)))
		return "TLS";
	if (keepalive && vt - lastread >= 2000LL * keepalive - slack(2)) {
		if (unread && c.rpending == 0 && !c.blocked && !on[SLOWCALL])
			bad("silence", "gives up a silent server with %lld bytes unread", c.came - c.took);
		if (unread && vt < c.lastwrite + keepalive * 1000LL && !c.tls)
			bad("silence", "gives up a server that has just taken something, with %lld bytes unread",
			    c.came - c.took);
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
	if (newpart(&sout, IEND, position(&sout))->said < (long long)sout.fed)
		bad("ended", "writes more with the end of its stream");
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

	br_sha1_init(&sha);
	br_sha1_update(&sha, c.id, strlen(c.id));
	br_sha1_update(&sha, secret, strlen(secret));
	br_sha1_out(&sha, digest);
	h = fnv(fnv(h, &none, sizeof(none)), hexof(digest, 20, "%02x", ""), 40);
	if (s->pay != fnv(h, "\2", 1))
		bad("handshake", "the handshake is wrong");
	if (ihead >= iread || sin_.q[ihead].what != IHEADER)
		bad("handshake", "a handshake comes before a header");
	ihead++;
}

static void
got_out(struct stanza *s)
{
	size_t len = headbytes(s->kind, s->type, s->id, s->from ? s->from : "", s->to ? s->to : "") + s->rest;

	if (c.saiderror && isroutable(s))
		bad("ended", "writes %s after an error of its stream", s->kind);
	if (eq(s->kind, "stream:error")) {
		c.saiderror = 1;
		note("proxy: stream error %s", s->cond);
	} else if (eq(s->kind, "handshake")) {
		checkhandshake(s);
		newpart(&sout, IHANDSHAKE, s->end);
	} else if (s->nons || !isroutable(s)) {
		bad("xml", "writes an element %s", s->kind);
	} else {
		if (len > MAXSTANZA)
			bad("large", "writes a stanza of %zu bytes: Prosody closes the stream", len);
		note("proxy: %s", describe(s));
		/* it looks again at twice what it had, which was the tag less a byte at most */
		sout.owed = s->tag <= 2050 ? 0 : s->tag - 2;
		newpart(&sout, ISTANZA, s->end)->s = *s;
		madeend = s->end;
		check(s);
	}
}

static void
connectdone(void *p, long how)
{
	progress++;
	c.connecting = 0;
	c.connectedat = vt;
	c.error = how == SERVES ? 0 : how == REFUSES ? ECONNREFUSED : EHOSTUNREACH;
	note("network: address %d %s", c.addr, how == SERVES ? "accepts" : strerror(c.error));
	if (how != SERVES)
		return;
	c.connected = 1;
	lastread = vt;
	seenopen(&sin_, opened_in, got_in, end_in);
	seenopen(&sout, opened_out, got_out, end_out);
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
	nout = len;
	jammed = jammed && len > 0;
	if (!c.open || was >= made)
		return;         /* it has thrown away what was for another connection */
	n = (size_t)(made - was);
	if (c.ended)
		bad("ended", "writes %zu bytes after the end of its stream", n);
	seenfeed(&sout, s + len - n, n);
	checkwhite(&sout);
}

/* A probe is over: a second one follows if some have answered, and others who were
 * there before have not, unless it was a second one itself. If nobody has answered, it
 * subscribes anew, unless that is why it had to probe. */
static void
probeisover(void)
{
	int late = 0, maybe = 0, was = second;
	struct res *r;

	for (r = resources; r; r = r->next) {
		maybe |= r->st == MAYBE || r->heard <= probe1 || r->heard == lastask || r->joinedat == lastask;
		if (known(r) == 1 && r->joinedat < lastask) {
			late |= r->heard < lastask && r->heard > probe1;
			answered |= r->heard > lastask;
		}
	}
	if (was == 0 && late && prestook > lastask)
		second = 1;
	else if (was == 1 || (!late && !maybe))
		second = 0;
	else
		second = -1;
	if (second == 1 || (prestook < lastask && was == 0 && !unans))
		want(vt);
	unans = prestook <= lastask && (unans || was != 1);
	if (prestook >= lastask)
		resubat = -1;
}

/* Its parser is at the end of the next thing that the server has said. */
static void
taken(void)
{
	struct part *i = sin_.q + iread;
	struct ping *p;

	peek();
	if (iread >= sin_.n) {
		if (!sin_.stopping)
			bad("parse", "finds more in what it reads than there is");
		return;
	}
	iread++;
	if (i->s.id && i->s.from && eq(i->s.from, domain) && eq(i->s.type, "error")) {
		unrouted = MAX(unrouted, findping(&i->s) ? 2 : 1);
		return;
	}
	if (i->s.from && eq(i->s.kind, "presence") && i->s.type && oftarget(i->s.from))
		sawtype = vt;
	p = findping(&i->s);
	if (p && i->s.nons)
		astray = 1;
	else if (p && !p->next)
		astraydue = astray;
	if (lastprobe && !i->s.nons && p && (back1 < 0 ? p->from >= askturn :
	    back2 < 0 && p->from >= turned1 + patience * 1000LL)) {
		*(back1 < 0 ? &back1 : &back2) = vt;
		turned1 = back2 < 0 ? turnedat : turned1;
		doubtsilent();
		if (back2 >= 0 && probeend == OPEN)
			probeisover();
	}
}

static void
handled(void)
{
	peek();
	while (skip())
		;
	if (ihead < iread && sin_.q[ihead].what != IEND)
		bad("effect", "has read %s, and nothing has come of it", describe(&sin_.q[ihead].s));
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
	if (handlers[sig] == SIG_IGN)
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
		             (!keepalive || vt < lastread + keepalive * 1000LL) && writable() && !c.dead;
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
	if (fault(SIGNALS, 2) && vt > usrat) {
		usrat = vt;     /* else the lines about one could bring the next, for ever */
		handle(SIGUSR1);
	}
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
	if (fd == 2)
		bad("call", "wants the flags of the log, which others share");
	return 0;
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
	c.badfrom = c.costlyfrom = c.stuckat = c.takesat = -1;
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
	c.latency = on[SLOWLINK] && !healed ? rnd(rnd(4) ? 400 : 4000) : rnd(3);
	c.rcap = on[SMALLBUF] && !healed ? spread(20, 5000) : 1 << (12 + rnd(10));
	c.wcap = on[SMALLBUF] && !healed ? spread(20, 5000) : 1 << (12 + rnd(10));
	if (wild == 0) {
		c.rcap = c.wcap = 4 << 20;
		c.latency = 0;
	}
	c.coupled = fault(COUPLED, 700);
	if (c.coupled)
		c.rcap = c.wcap = spread(100, 20000);
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
	peek();
	if (c.wshut || !c.connected || c.rst)
		return 0;
	c.wshut = 1;
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
	refusedat = vt;
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

/* What is being read may be more than expat has memory for. */
static void
weigh(const struct part *i)
{
	if (i->s.tag > PARSERHARD / 28 && c.costlyfrom < 0)
		c.costlyfrom = c.took - 1;
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
	countall("bytes in", n);
	lastread = jammed ? lastread : vt;
	progress++;
	for (; inread < sin_.n && sin_.q[inread].end <= c.took; inread++) {
		if (sin_.q[inread].what == IHANDSHAKE) {
			c.hsread = 1;
			c.hsreadat = vt;
		}
		weigh(sin_.q + inread);
	}
	/* a part of it may be too much already */
	if (inread > 0 && inread < sin_.n && sin_.q[inread - 1].end < c.took)
		weigh(sin_.q + inread);
	if (c.came < c.sent)
		arrives(vt + c.latency);
	return (ssize_t)n;
}

static void logged(const char *);
static int logstate;            /* LOGBLOCK, LOGFULL, LOGCLOSED or 0: it is read */
static size_t logused;
static int logtorn;             /* it ends in a part of a line */
static const char *saying = "";

static int
starts(const char *s, const char *with)
{
	return !strncmp(s, with, strlen(with));
}

void
w_says(const char *format)
{
	saying = format;
	c.closing |= eq(format, "%s: %s");
	if (starts(format, "shared: ")) {
		if (!astraydue || astraysaid)
			bad("shared", "says that pings to itself went elsewhere");
		astraysaid = 1;
	}
	if (!starts(format, "jammed: "))
		return;
	peek();
	if (c.closing || jammed || nout == 0 || vt < c.lastwrite + patience * 1000LL - slack(0))
		bad("jam", "refuses all, %lld ms after the server has taken something", vt - c.lastwrite);
	jammed = 1;
	count("jams");
}

/* The log does not take a line. */
static void
loseline(void)
{
	loglost++;
	loguntold += !starts(saying, "log: ");
}

/* As a pipe, which has room once a page of it is free. */
static int
polllog(struct pollfd *p)
{
	int full = logstate == LOGBLOCK && logused + 4096 > 65536;

	p->revents = full ? 0 : POLLOUT;
	if (full)
		loseline();
	return !full;
}

static ssize_t
writelog(const char *s, size_t n)
{
	size_t part;

	if (logstate == LOGCLOSED && handlers[SIGPIPE] != SIG_IGN)
		bad("signal", "SIGPIPE kills it");
	if (logstate == LOGBLOCK && logused + n > 65536)
		bad("logblock", "writes to a log that nobody reads, and blocks for ever");
	if (logstate == LOGCLOSED || logstate == LOGFULL) {
		if (logstate == LOGFULL && n > 1 && !rnd(4)) {
			part = rnd(4) ? 1 + rnd((unsigned)n - 1) : n - 1;
			if (part < n - 1)
				loseline();
			else
				logged(fmt("%.*s", (int)part - logtorn, s + logtorn));
			logtorn = s[part - 1] != '\n';
			return (ssize_t)part;
		}
		loseline();
		return fails(logstate == LOGCLOSED ? EPIPE : ENOSPC);
	}
	logused += logstate == LOGBLOCK ? n : 0;
	if (n < 1 || s[n - 1] != '\n' || logtorn != (s[0] == '\n'))
		bad("log", "a line is none");
	if (n > 512)
		bad("loglong", "a line of %zu bytes", n);
	logged(fmt("%.*s", (int)n - 1 - logtorn, s + logtorn));
	logtorn = 0;
	return (ssize_t)n;
}

ssize_t
w_write(int fd, const void *src, size_t n)
{
	unsigned char *b;
	size_t len, done;

	if (fd == WAKEW) {
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
	c.takesat = -1;
	if (c.wcap - inflight() <= 0)
		return fails(EAGAIN);
	n = some(c.wcap - inflight(), n);
	if (n == 0)
		return 0;
	tracehash = fnv(tracehash, src, n);
	c.wtotal += (long long)n;
	countall("bytes out", n);
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

static size_t living;           /* bytes that the program has allocated */

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
	void *fresh;

	if (n > 0 && c.open && fault(ALLOC, 2)) {
		c.allocfailed = 1;
		note("no memory");
		return NULL;
	}
	fresh = mem(n);
	if (p)
		memcpy(fresh, p, MIN(((struct block *)p - 1)->size, n));
	w_free(p);
	living += n;
	if (living > PARSERHARD + 65536 + PARSERHARD / 10)
		bad("memory", "holds %zu bytes", living);
	return fresh;
}

void
w_exit(int status, int abrupt)
{
	peek();
	note("proxy: exits with %d", status);
	if (termat < 0)
		bad("exit", "exits with %d, and no signal has told it to", status);
	if (abrupt && !resolving)
		bad("exit", "leaves without ado");
	if (status)
		bad("exit", "status %d after a signal", status);
	if (vt - termat > 1000 + stoppedms)
		bad("term", "takes %lld ms to leave", vt - termat);
	/* who was asleep past the end has one more try, as long as the socket takes it */
	if (termonline && !goodbye && !c.blind && !c.rst && !c.fin && !c.blocked &&
	    (slept < termat || (refusedat < slept && c.wcap - inflight() > 0)))
		bad("term", "leaves without closing the stream");
	longjmp(ending, 1);
}

/* ---- the log ---- */

static long long budgetat, budget;

/* The log says that a resource, or all, have left: they must have. */
static void
claim(const char *s)
{
	const char *name = s + strlen(target) + 1;
	struct res *r;

	if (!starts(s, target) || strchr(s, '%'))
		return;
	for (r = resources; r; r = r->next)
		if (name[-1] == ',' || (starts(name, r->name) && starts(name + strlen(r->name), ": ")))
			r->toldgone = vt;
}

/* It says that there are n of what, of which there are so many. */
static void
checkcount(const char *what, long long n, long long least, long long most)
{
	if (n < least || n > most)
		bad("counted", "says %lld %s, of %lld to %lld", n, what, least, most);
}

/* What it says that it has counted is so, where the world has counted it, too. */
static void
checkcounts(const char *s)
{
	const char *what;
	int stays = c.open && !c.ended;
	long long n;
	size_t i, len;
	char *name;

	peek();
	for (; isdigit((unsigned char)*s); s = name + len + (name[len] ? 2 : 0)) {
		n = strtoll(s, &name, 10);
		len = strcspn(++name, ",");
		for (i = 0; (what = total->counts[i].what); i++)
			if (strlen(what) == len && starts(name, what) && !(*tlspin && starts(what, "bytes ")))
				checkcount(what, n, counted[i], counted[i]);
		if (stays && starts(name, "open,"))
			checkcount("open", n, nopenlo, nopenhi + nmistaken);
		if (stays && starts(name, "online,"))
			checkcount("online", n, nin, nin + nmaybe);
	}
}

/* Lines that others cause are few, no line is long, all are printable. */
static void
logged(const char *s)
{
	static const char *const ourown[] = {
		"joined: ", "left: ", "failed: ", "resource: ", "counted: ", "online: ", "connect: ",
		"resolve: ", "disconnected: ", "subscribing: ", "subscribed: ", "not subscribed: ", "waiting: ",
		"stopping: ", "lost: ", "log: ", "stalled: ", "recovered: ", "draining: ",
		"back: ", "in charge: ", "jammed: ", "shared: "
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
	if (starts(what, "counted: "))
		checkcounts(what + 9);
	if (starts(what, "log: ")) {
		if (strtoul(what + 5, NULL, 10) < loguntold)
			bad("loglost", "%zu lines are lost, and it says: %s", loguntold, what + 5);
		loguntold = 0;
	}
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
	return (!pings || vt > lastping + patience * 1000LL + 1000) && vt > dueback + 1000;
}

/* 1 if it must have seen that one was silent for `stall' seconds since t, and have said
 * so: by itself, or while it looks after others, when it could write at once. */
static int
hasjudged(long long t)
{
	if (isidle())
		return !pings || judgedby > t + stall * 1000LL;
	return judgedby > MAX(t, lastheld) + stall * 1000LL + 1000 && refusedat < turnedat &&
	       !c.blocked && !on[SMALLBUF] && !on[SLOWLINK] && !on[COUPLED];
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
		if (q->jam == 2 && q->st != QFAILING && plain(q))
			bad("jam", "a request of %s whose answer came in a jam has no error yet", q->key->f);
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
		if (!late && (q->drained + answertime * 1000LL > judgedby || q->given >= judgedby))
			break;
		if (plain(q))
			bad("late", "a request of %s has no answer after %lld ms", q->key->f, vt - q->written);
		endreq(q, QERRED);
	}
	for (q = retry ? openlist.next : &openlist; q != &openlist; q = q->next) {
		if (q->st != QOPEN || !q->get || (q->key->vague && q->bounced < 2))
			continue;
		if (q->bounced)
			bad("retry", "a get of %s bounces, and is neither handed on nor answered", q->key->f);
		if (q->times > (int)retry || known(q->res) != 1 || !stalled(q->res) || q->outend > q->res->pingend)
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
	if (inread > iread && sin_.q[iread].what != IEND)
		bad("effect", "has read %s and not looked at it", describe(&sin_.q[iread].s));
	if (ihead < inread && sin_.q[ihead].what == IEND && !c.wfail)
		bad("effect", "has read %s and goes on", sin_.q[ihead].why);
	judgerequests();
	for (r = resources; r; r = r->next) {
		t = MAX(MAX(slowback, r->readat), MAX(r->lifehi, r->pinged));
		/* if it was tried before the server surely had its ping, our next one counts,
		 * and that may be lost */
		t = MAX(t, r->pings > 0 ? slept : -1);
		if (stall && known(r) == 1 && r->open > 0 && nmistaken == 0 && hasjudged(t) &&
		    vt > t + stall * 1000LL + 1000 + slack(0) && !(r->pings > 0 && astray))
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
		/* once a ping that is out is back, or lost */
		due = MAX(MAX(back1, held) + patience * 1000LL,
		          pings ? pingat + patience * 1000LL : dueback);
	else if (msub && lastprobe && probeend == OPEN && back2 >= 0 && doubted)
		due = back2;
	else if (!msub) /* after a probe the time begins anew */
		due = MIN(due, sawpres ? MAX(lastask, deniedat) + 1000LL * MAX(askmax, refresh) : nextask());
	else if (probeend == OPEN)
		due = MIN(due, MAX(MAX(lastask, pingat), back2) + refresh * 1000LL);
	due = MAX(due, held);
	/* a probe that waited in a jam begins only then */
	due = MAX(due, jammedat + patience * 1000LL);
	if (due < FOREVER && vt > due + 3000 && !on[SMALLBUF] && !on[SLOWLINK] && !on[COUPLED])
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
	long long life, most;

	if (!c.open || c.connecting || c.error) {
		judgepause(events, end);
		return;
	}
	c.blocked = !writable();
	if (events & POLLIN)
		c.stuckat = -1;
	else if (c.stuckat < 0 || c.lastwrite > c.stuckat)
		c.stuckat = vt;
	if (readable() && !(events & POLLIN) && !(c.blocked && (events & POLLOUT)))
		bad("hang", "%lld bytes wait to be read, and it waits for %s", c.came - c.took,
		    events & POLLOUT ? "the socket, which is writable" : "nothing");
	if (!(events & (POLLIN | POLLOUT)))
		bad("hang", "waits for nothing on the connection");
	if (!(events & POLLOUT))
		quiesce();
	if (c.blind && c.took == c.sent && vt > lastread + 1000 && writable())
		bad("tlsclose", "keeps a connection whose TLS has ended %lld ms ago", vt - lastread);
	if (unrouted == 2 && !c.ended)
		bad("deaf", "keeps a connection through which nothing leads to it");
	if (c.ended && !c.tls && !(events & POLLOUT) && !c.wshut && !c.rst)
		bad("closing", "has written all and keeps its side open");
	if ((slept >= 0 && vt <= slept + 1000) || c.blind)
		return;
	if (c.ended && vt > c.endedat + 1000)
		bad("closing", "keeps a connection %lld ms after the end", vt - c.endedat);
	if (!c.ended && !c.hsread && vt > MAX(c.connectedat, slept) + patience * 1000LL + 1000)
		bad("patience", "waits for the handshake for %lld ms", vt - c.connectedat);
	if (c.ended || onlineat < 0)
		return;
	/* while it does not read for want of room, what it writes is the sign of life */
	life = MAX(lastread, MIN(paused, c.lastwrite));
	/* the ping of who was asleep when it was due is late, and with TLS what was read
	 * before may count only then */
	life = MAX(life, c.tls ? slept : slept - keepalive * 1000LL);
	most = keepalive * 2000LL + 1000;
	if (keepalive && vt > life + most && ((events & POLLIN && c.came == c.took) || vt > c.lastwrite + most))
		bad("keepalive", "keeps a connection that has been silent for %lld ms", vt - lastread);
}

/* Set what has happened to the pipe of signals and the connection; returns how many
 * are ready. */
static int
lookat(struct pollfd *p)
{
	p[0].revents = wakebytes ? POLLIN : 0;
	p[1].revents = 0;
	if (p[1].fd >= 0 && c.error)
		p[1].revents = POLLERR | POLLHUP | POLLIN | POLLOUT;
	else if (p[1].fd >= 0 && !c.connecting)
		p[1].revents = (readable() ? POLLIN : 0) | (writable() ? POLLOUT : 0) |
		               (c.rst ? POLLERR | POLLHUP : 0) |
		               (finished() && c.wshut ? POLLHUP : 0);
	p[1].revents &= p[1].events | POLLERR | POLLHUP;
	return !!p[0].revents + !!p[1].revents;
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
	short wanted;
	int ready, judged = 0, held;
	long was;

	if (n == 1 && p->fd == 2 && timeout == 0)
		return polllog(p);
	if (n != 2 || p[0].fd != WAKER || p[0].events != POLLIN)
		bad("hang", "waits deaf to signals");
	if (p[1].fd >= 0)
		checkfd(p[1].fd, "poll");
	wanted = p[1].fd < 0 ? 0 : p[1].events;
	held = c.open && wanted != POLLIN;
	if (astraydue && !astraysaid)
		bad("shared", "does not say that pings to itself went elsewhere");
	/* what still comes is gone, so that a server may read our last words */
	if (c.open && c.closing && !*tlspin && !(wanted & POLLIN))
		bad("term", "does not read while it closes the stream");
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
	while (!(ready = lookat(p)) && vt < end) {
		if (!judged)
			judge(wanted, end);
		judged = 1;
		if (events->when > end) {
			vt = end;
			continue;
		}
		was = progress;
		happen();
		if (wakebytes && was != progress && rnd(2))
			return fails(EINTR);
	}
	if (judged && !held && c.open && !c.ended && !c.blind && onlineat >= 0 && nasks > 0 && !on[SLOWCALL])
		judgeasks();
	if (judged && c.open && !c.error && !c.ended && !c.blind && onlineat >= 0 && !(wanted & POLLIN) &&
	    vt > MAX(c.stuckat + patience * 1000LL + slack(0), slept) + 1000 && readable())
		bad("jam", "neither reads nor is read from for %lld ms", vt - c.stuckat);
	/* poll() need not say that there is room as long as there is little */
	if (judged && linked() && !(wanted & POLLIN) && readable() && c.takesat >= 0 &&
	    vt > MAX(c.takesat, slept) + 1000 + slack(0))
		bad("jam", "does not write what could go out since %lld ms", vt - c.takesat);
	if (held)
		lastheld = vt;
	if (!(p[1].events & POLLIN) || jammed || on[SLOWCALL])
		paused = vt;
	jammedat = jammed ? vt : jammedat;
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
static long long givesup;       /* the server, to bring the target what was asked last */
static unsigned far;            /* ms to the target's server and back */
static long long accepttime, finaltime;
static int nfinal, finals;
static unsigned long token, owns; /* owns: requests of the workers' own */
static const char finaljid[] = "final@x.test/y";

/* An attribute, escaped as liberally as Prosody does, or not. */
static const char *
attr(const char *name, const char *value)
{
	static const char special[] = "&<>'\"";
	static const char *const entities[] = { "&amp;", "&lt;", "&gt;", "&apos;", "&quot;" };
	const char *c;
	char *s, *p;

	if (!value)
		return "";
	s = mem(strlen(name) + 6 * strlen(value) + 5);
	for (p = s + sprintf(s, " %s=%c", name, quote); *value; value++) {
		c = strchr(special, *value);
		if (c && (strchr("&<", *c) || *c == quote || style & 1))
			p = stpcpy(p, entities[c - special]);
		else
			*p++ = *value;
	}
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
	case 9:
		/* with fewer escapes it is much smaller */
		n = fault(HUGE, 200) ? rnd(MAXSTANZA) : rnd(9);
		p = s = mem(6 * n + 1);
		for (*p = '\0'; n > 0; n--)
			p = stpcpy(p, "&apos;");
		return fmt("<q xmlns='urn:w' t='%lu' a='%s'/>", t, s);
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
	for (w = workers; w < workers + nworkers && !w->up; w++)
		;
	if (w == workers + nworkers && rnd(2))
		telltype("unavailable", target);
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

/* An event: a worker accepts the subscription, maybe without a request for it. */
static void
accepted(void *p, long unasked)
{
	unsigned i;
	int any = 0;

	subscription = unasked ? PENDING : subscription;
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

/* An event: the subscription is withdrawn, by one of the workers or not. */
static void
withdraws(void *p, long arg)
{
	if (subscription != SUBSCRIBED)
		return;
	subscription = NOSUB;
	telltype("unsubscribed", p && rnd(2) ? fullname(p) : target);
	if (rnd(2))
		at(vt + rnd(2000), accepted, NULL, 1, generation);
}

/* An event: worker p comes, as soon as its server is there. */
static void
comes(void *p, long arg)
{
	struct worker *w = p;

	if (down)
		at(vt + 1000, comes, w, 0, 0);
	if (down || w->up)
		return;
	w->up = w->alive = 1;
	w->queue = NULL;
	note("worker %s comes", shorten(w->name));
	shows(w, 0);
	if (subscription == PENDING)
		at(vt + accepttime, accepted, NULL, 0, 0);
}

/* An event: the server has done away with a session; EXPIRED, and LOST, of which it does not
 * tell either: only while there are faults. */
enum { SAID, SILENTLY, EXPIRED, LOST };
static void
goes(void *p, long how)
{
	const char *id, *from;
	int silent = how == SILENTLY || how == LOST;
	struct worker *w = p;
	struct reply *q;

	if (!w->up || (how >= EXPIRED && healed))
		return;
	w->up = w->alive = 0;
	note("worker %s goes%s", shorten(w->name), silent ? " without a word" : "");
	for (q = w->queue; q && cansee(); q = q->next)
		tell("iq", "error", q->id, fullname(w), q->to,
		     errorbody("cancel", style & 4 ? "recipient-unavailable" : "service-unavailable"));
	w->queue = NULL;
	if (fault(PRERROR, 300)) {
		id = rnd(2) ? "other" : NULL;
		from = rnd(2) ? target : fullname(w);
		tell("presence", "error", id, from, domain,
		     errorbody("cancel", rnd(2) ? "recipient-unavailable" : "service-unavailable"));
	}
	if (!silent && cansee())
		telltype("unavailable", fullname(w));
}

/* An event: a reply is given. */
static void
answer(void *p, long arg)
{
	struct reply *r = p;
	struct worker *w = r->w;
	const char *f;
	size_t head;

	if (w && (!w->up || !w->alive || w->hung || linkdown))
		return;
	if (!w) {
		r->body = rnd(3) ? content(0, 0) : errorbody("cancel", "item-not-found");
	} else if (!r->body) {
		f = decode(resof(r->to));
		head = fault(OVERFLOW, 40) && f ? headbytes("iq", r->type, r->id, bareof(r->to), f) : 0;
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

static void
work(struct worker *w, const struct stanza *s)
{
	struct reply r = { w->queue, w, "result", s->id, NULL, s->from, NULL };

	if (!w->alive) {
		w->queue = memcpy(mem(sizeof(r)), &r, sizeof(r));
		/* what is written to it may show that it has gone */
		if (fault(HIBERNATE, 200))
			at(vt + rnd(200), goes, w, rnd(2) ? EXPIRED : LOST, 0);
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
	if (!healed && (often((unsigned)w->errs) || (vt < givesup && often(300)))) {
		r.type = "error";
		r.body = errorbody("cancel", rnd(2) ? "service-unavailable" :
		                   rnd(4) ? "item-not-found" : "remote-server-not-found");
	}
	if (w->wrong && fault(WRONG, 100))
		r.to = wrongaddress();
	if (w->punctual && answertime && !healed)
		later(vt + answertime * 1000LL - rnd(r.body ? 20 : 500), r);
	else
		later(vt + (w->delay ? rnd(w->delay) : 0), r);
	r.body = NULL;
	if (w->twice && fault(TWICE, 200)) {
		if (rnd(2))
			r.w = workers + rnd(nworkers);
		if (rnd(2)) {
			r.type = "error";
			r.body = errorbody("cancel", "item-not-found");
		}
		later(vt + 1 + rnd(rnd(2) ? 1000 : 100000), r);
		r.w = w;
		r.body = NULL;
	}
	if (relay && !eq(s->to, target) && often(200) && !healed) {
		r.type = rnd(2) ? "get" : "set";
		r.id = fmt("r%lu", ++owns);
		if (!rnd(8))
			r.to = rnd(2) ? domain : under(domain, domain);
		later(vt + rnd(1000), r);
	}
}

/* An event: the server gives up to bring what has this id to the target. */
static void
unreachable(void *p, long arg)
{
	tell("presence", "error", p, target, domain, errorbody(remote == 1 ? "cancel" : "wait",
	     remote == 1 ? "remote-server-not-found" : "remote-server-timeout"));
}

/* An event: presence of the proxy has come to the target's server. */
static void
asked(void *p, long arg)
{
	const struct stanza *s = p;

	if (linkdown || (remote && fault(UNREACH, 50))) {
		givesup = vt + rnd(2) * rnd(2000 * patience);
		if (remote != 2)
			at(givesup, unreachable, (void *)copy(s->id), 0, generation);
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
			if (fault(UNSUB, 20))
				at(vt + rnd(1000 * patience), withdraws, NULL, 0, generation);
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
		cut("the server cuts the connection before a word", rnd(2));
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

static void
servetarget(const struct stanza *s)
{
	struct worker *w = workers;
	int up;

	while (w < workers + nworkers && !eq(w->name, resof(s->to)))
		w++;
	up = w < workers + nworkers && w->up;
	if (eq(s->kind, "presence")) {
		if (far && !healed) {
			count(behaviours[FAR].name);
			at(vt + far, asked, memcpy(mem(sizeof(*s)), s, sizeof(*s)), 0, generation);
		} else {
			asked((void *)s, 0);
		}
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

static void
serve(struct part *o)
{
	const struct stanza *s = &o->s;
	struct reply r = { NULL, NULL, NULL, s->id, s->to, s->from, NULL };

	if (o->what == IEND) {
		if (!sin_.stopping)
			says("</stream:stream>");
		if (!fault(TRICKLE, 500))
			cut("the server ends the connection too", 0);
	} else if (o->what == IHEADER) {
		if (c.badpin)
			bad("pin", "trusts a certificate that is not in tlspin");
		serveheader();
	} else if (o->what == IHANDSHAKE) {
		servehandshake();
	} else if (c.deaf && isours(s->to)) {
		says(fmt("<iq type='error'%s%s%s>%s</iq>", attr("id", s->id), attr("from", s->to),
		         attr("to", s->from), errorbody("wait", "remote-server-timeout")));
	} else if (!c.scripted) {
		;
	} else if (oftarget(s->to)) {
		servetarget(s);
	} else if (isours(s->to)) {
		/* what is read together with what is then due */
		if (!rnd(8))
			tell("iq", "get", fmt("i%lu", ++token), people[rnd(npeople)], domain, NULL);
		if (fault(PINGLOST, 100))
			astray = 1;
		else
			tell(s->kind, s->type, s->id, s->from, s->to,
			     s->flags & KPING ? "<ping xmlns='urn:xmpp:ping'/>" : NULL);
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
		at(vt + 30000, cut, "the server ends the connection", 0, generation);
	else
		cut("the server ends the connection", how == BYRESET);
}

/* ---- requesters ---- */

static const char *
somebody(void)
{
	static const char *const odd[12] = {
		"%sx/r", "b.test", "u@b.test/%%41 b/c@d'\"&<>",
		"j\xc3\xbcrgen@b.test/\xd7\xa9\xd7\x9c\xd7\x95\xd7\x9d abc",
		NULL, NULL, NULL, NULL, NULL, "u@b.test/\x7f", "u@b.test/\x7f", "u@b.test/\x7f"
	};
	unsigned form;
	char *s;

	if (!fault(ODDJID, 300))
		return people[rnd(npeople)];
	form = rnd(COUNT(odd));
	if (odd[form])
		return fmt(odd[form], target);
	if (form == 7)
		return fmt("%s@b.test", repeat('n', 1023 + rnd(2)));
	if (form == 8)
		return fmt("k@b.test/%s", repeat('k', 90 + rnd(200)));
	s = repeat('l', 1021 + rnd(4));
	memcpy(s, "long@b.test/", 12);
	if (rnd(2)) {
		memcpy(s + 12, "\xc3\xbc", 2);
		s[strlen(s) - 4] = '\0';
	}
	return s;
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
	case 3: /* the longer it is used, the less is known of who has which */
		return fmt("same%lld", vt / 5000);
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
	static const char *const odd[13] = {
		NULL, NULL, "%s/x", "n@%s/u@b.test", "x%s", "@%s", "%s/", "PROXY.test"
	};
	unsigned form;

	if (!often(wild ? 300 : 200))
		return domain;
	form = rnd(wild ? COUNT(odd) : 2);
	if (odd[form])
		return fmt(odd[form], domain);
	if (form == 8)
		return fmt("%s@%s", repeat('n', 1022 + rnd(3)), domain);
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
		       fmt("<%s xmlns='urn:xmpp:carbons:2'/>", ++token % 2 ? "sent" : "received") : content(0, 0);
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
	/* the same again, above all if it may soon be sent back */
	for (w = workers; w < workers + nworkers && (!w->up || w->alive); w++)
		;
	if (w < workers + nworkers ? fault(HIBERNATE, 500) : fault(ODDID, 30))
		tell(kind, type, id, f, to, body);
}

static void
sendmore(void *p, long every)
{
	int n = 1;

	if (vt >= finaltime)
		return;
	if (fault(FLOOD, c.coupled ? 200 : 10))
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
	} else if (f == DEAF && c.scripted && keepalive) {
		note("the server forgets the component, and keeps the connection");
		c.scripted = 0;
		c.deaf = 1;
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
		at(vt + t, set, &mood, FINE, 0);
		serverends("reset", POLITELY);
	} else if (f == RESTART) {
		/* in the middle of much work */
		for (i = rnd(3) ? 0 : rnd(2 * MAXREQUESTS); i > 0; i--)
			tell("iq", "set", fmt("%s%lu", repeat('i', REQUESTSIZE / 2), ++token),
			     people[rnd(npeople)], domain, NULL);
		for (i = 0; i < nworkers; i++)
			if (workers[i].up) {
				goes(workers + i, SAID);
				at(vt + t + rnd(10000), comes, workers + i, 0, 0);
			}
		if (rnd(2))
			serverends("system-shutdown", POLITELY);
		else
			serverends(NULL, c.tls && rnd(2) ? INONEPIECE : ABRUPTLY);
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
		if (f != LOGCLOSED)
			at(vt + t, set, &logstate, 0, 0);
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

/* An event: the target says once more that it has accepted the subscription. */
static void
confirms(void *p, long arg)
{
	if (cansee())
		telltype("subscribed", target);
}

/* Presence of the target, or of others, that is not expected. */
static void
presencetrouble(int f, struct worker *w)
{
	const char *id, *from, *cond;
	unsigned n;

	if (f == PRERROR && subscription == SUBSCRIBED) {
		id = rnd(4) ? NULL : nasks && rnd(2) ? lastid() : "x";
		from = rnd(2) ? target : fullname(w);
		cond = rnd(3) ? "recipient-unavailable" : "remote-server-timeout";
		tell("presence", "error", id, from, domain, errorbody(rnd(4) ? "cancel" : "wait", cond));
		if (!rnd(4))
			telltype("unavailable", target);
	} else if (f == ROSTERLOST) {
		note("server: the roster entry is lost");
		subscription = NOSUB;
	} else if (f == UNSUB) {
		withdraws(w, 0);
	} else if (f == ASKED) {
		id = rnd(2) ? "a" : NULL;
		tell("presence", rnd(2) ? "subscribe" : "probe", id, target, domain, NULL);
		for (n = cansee() ? rnd(4) : 0; n > 0; n--)
			at(vt + rnd(5000), confirms, NULL, 0, generation);
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
		goes(w, often(300) ? SILENTLY : SAID);
		at(vt + t, comes, w, 0, 0);
	} else if (f == HIBERNATE && w->up) {
		note("worker %s dies and stays online", w->name);
		w->alive = 0;
		at(vt + 1000 * (5 + rnd(600)), goes, w, EXPIRED, 0);
	} else if (f == REPLACE && w->up && rnd(2)) {
		goes(w, SAID);
		comes(w, 0);
	} else if (f == REPLACE && w->up) {
		note("worker %s has a new session, and then the last one ends", shorten(w->name));
		shows(w, 0);
		w->alive = 1;
		w->queue = NULL;
		if (cansee())
			telltype("unavailable", fullname(w));
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
	if (c.open && c.dead) {
		c.dead = 0;
		cut("the connection that was lost is reset", 1);
	}
	if (c.open && !c.scripted && sin_.stopping)
		cut("the server ends what it has broken", 0);
	if (inflight() > 0) {
		c.wpending = 0;
		drains(vt);
	}
	c.rpending = 0;
	arrives(vt);
	logstate = 0;
	for (w = workers; w < workers + nworkers; w++) {
		/* what was lost, and waits for ever, ends when its worker leaves */
		w->up |= !answertime;
		if (!answertime)
			subscription = SUBSCRIBED;
		if (w->hung || !w->alive || w->delay > 1000 || !answertime)
			goes(w, SAID);
		w->hung = w->wrong = w->twice = w->errs = 0;
		w->delay = 100;
		if (w == workers || rnd(2))
			comes(w, 0);
	}
	if (subscription == PENDING)
		at(vt, accepted, NULL, 0, 0);
}

static void
lastrequest(void *p, long n)
{
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
	if (BUILD != 0 && total->tomove > 40 && (double)total->moved < total->tomove / 8)
		bad("sticktime", "%ld have moved to who has joined, and %.0f should have", total->moved, total->tomove);
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
	return seedprng;
}

static void
settletls(void)
{
	br_sha256_context sha;
	unsigned char pin[32];
	size_t i;
	int two;

	for (i = 0; i < sizeof(cert); i++)
		sscanf(certhex + 2 * i, "%2hhx", cert + i);
	br_sha256_init(&sha);
	br_sha256_update(&sha, cert, sizeof(cert));
	br_sha256_out(&sha, pin);
	two = (int)rnd(2);
	if (on[TLSBAD])
		pin[rnd(32)] ^= (unsigned char)(1 << rnd(8));
	tlspin = fmt("%s%s", two ? fmt("%s,", repeat('a', 64)) : "", hexof(pin, sizeof(pin), "%02X", ":"));
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
	strcpy(target, remote ? "svc@far.test" : "svc@b.test");
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

static const char *
workername(unsigned i)
{
	static const char *const forms[] = {
		"w%05d%s", "w\xc3\xbc%d\xd7\xa9", "w/<'\"&%%>%d x", "other%d", "w%d"
	};
	unsigned form = on[ODDJID] && rnd(4) == 0 && i > 0 ? rnd(5) : 4;

	return fmt(forms[form], i, form == 0 ? repeat('L', 1016 + rnd(2)) : NULL);
}

static void
populate(void)
{
	struct worker *w;
	unsigned i;

	nworkers = 1 + SIZE(rnd(6), spread(0, 30), rnd(60));
	if (on[MANY])
		nworkers = SIZE(12, 200 + rnd(1300), 120);
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
		at(wild ? rnd(20000) : 0, comes, w, 0, 0);
	}
	npeople = 1 + rnd(20);
	people = mem(npeople * sizeof(*people));
	for (i = 0; i < npeople; i++)
		people[i] = fmt("u%d@b.test/r%d", i / 3, i);
	style = (int)rnd(8);
	quote = rnd(4) ? '\'' : '"';
	prosody = (int)rnd(2);
	listsall = (int)rnd(2);
	accepttime = wild ? rnd(60000) : 0;
	subscription = rnd(2) ? SUBSCRIBED : NOSUB;
	far = on[FAR] ? rnd(5000 * patience) : 0;
}

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

static void
world(uint64_t seed)
{
	static const unsigned shares_[] = { 0, 60, 200, 400 };
	static char arg0[] = "client_proxy";
	char *argv[] = { arg0, NULL };
	unsigned p;
	int i;

	theseed = seed;
	chance = scramble(seed + 1);
	entropy = scramble(seed + 77777);
	tracehash = 0xcbf29ce484222325;
	blocks.next = blocks.prev = &blocks;
	openlist.next = openlist.prev = &openlist;
	lastend = termat = slept = paused = refusedat = givesup = -1;
	budget = 60000;
	wild = (int)rnd(8) / 2;
	for (i = 0; i < BEHAVIOURS; i++) {
		p = i == TLS || i == DECLS ? 150 : shares_[wild] * behaviours[i].weight / 100;
		on[i] = (char)often(p);
		/* for hunting */
		on[i] &= !listed(env("WORLDWITHOUT"), behaviours[i].name);
		on[i] |= listed(env("WORLDWITH"), behaviours[i].name);
	}
	settle();
	populate();
	plan();
	total->worlds++;
	if (verbose)
		tellworld();
	if (!setjmp(ending)) {
		client_proxy(1, argv);
		bad("exit", "returns");
	}
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
}

#ifdef FUZZ
/* Nothing of one world is left in the next, which is in the same process. */
__attribute__((no_sanitize("address")))
static void
reset(void)
{
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
}

int
LLVMFuzzerTestOneInput(const unsigned char *data, size_t size)
{
	total = total ? total : calloc(1, sizeof(*total));
	fuzzbytes = data;
	nfuzzbytes = size;
	reset();
	world(fnv(0, data, size));
	return 0;
}
#else

/* The machine's time passes and the world's does not. */
static void
stuck(int sig)
{
	bad("stuck", "takes more than 300 s of the machine's time");
}

/* Run one world, in a process of its own: 1 if it is bad. */
static int
isbad(uint64_t seed)
{
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		signal(SIGPROF, stuck);
		setitimer(ITIMER_PROF, &(struct itimerval){ .it_value = { 300, 0 } }, NULL);
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
	total = mmap(NULL, sizeof(*total), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
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

# ---- simulate, fuzz, soak, storm ----

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

# Seeds that found faults of the program, or slips that were planted in it.
failed_once() {
	for seed in 3 7 15 19 21 27 42 51 52 65 69 76 88 93 97 99 110 138 144 153 200 282 360 417 \
	    1000012 6000020 6000250 6000524 935035302 3883002126 3992050388 3993004707 \
	    3994002170; do
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
	build_world fuzz clang "-O1 -DFUZZ -fsanitize=fuzzer,address,undefined" || exit
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
	prosody
	proxy
	workers
	printf '%-22s %9s %9s %9s %9s\n' "while" sent answered errors lost
	until=$(($(date +%s) + $1))
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
	cat "$dir"/proxy.*.log | grep -c . | sed 's/$/ lines of log/'
	awk '/VmHWM/ { print "at most " $2 " KiB resident since its last start" }' "/proc/$proxypid/status"
	stop
}

# Four workers, three requesters, and in the middle of it: nothing; a worker
# leaves; one is killed; the proxy is; the server is.
soak_round() {
	for r in a b c d; do
		worker $r
	done
	for r in x y z; do
		asker "$c2s" user "$r" proxy.localhost "$2"
	done
	sleep 1
	case $1 in
	leave) kill -USR1 "$pid_a" ;;
	kill) end "$pid_a" 9 ;;
	proxy)
		end "$proxypid" 9
		proxy
		;;
	server)
		end "$serverpids" 9 2>&1 || :
		prosody
		;;
	esac
	askers_are_done >"$dir/done"
	sed "s/^/$1 /" "$dir/done" >>"$dir/table"
	for p in $pid_a $pid_b $pid_c $pid_d; do
		end "$p" || :
	done 2>>"$dir/ended"
	await sh -c "tail -n 1 '$log' | grep ': 0 online\|disconnected\|waiting'" || :
}

# On this server, for so many seconds: ten workers that have something in hand, of
# which one is killed and started again each second, and 500 gets a second. Each has
# an answer, and only one.
storm() {
	"$1"
	proxy retry=9
	workers 10 b c d e f g h i j k
	asker "$c2s" user x proxy.localhost $(($2 * 500)) 500
	i=0
	while [ $i -lt "$2" ]; do
		r=$(echo bcdefghijk | cut -c $((i % 10 + 1)))
		eval "end \$pid_$r 9"
		worker "$r" 10
		sleep 0.8
		i=$((i + 1))
	done
	askers_are_done
	logged "failed: [0-9]* requests"
	grep "^$(($2 * 500)) sent, $(($2 * 500)) answered, 0 errors; .* 0 twice$" "$dir/asked.x"
	counted ".* 0 open"
}

# ---- bench ----

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
		serve_load /dev/null 1 0 $resources "$cport" $valgrind "$bin" >"$dir/lost"
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
	serve_load "$dir/in" 1 "$n" $resources "$cport" $valgrind "$bin" >"$dir/lost"
	cost=$(($(sed -n 's/^summary: //p' "$dir/cost") - known))
	[ "$1" != unwell ] || configure
	echo "$1: $(grep -o '[0-9]*$' "$dir/lost") of $n stanzas lost," \
	    "$((cost / n)) instructions for each, $((cost * 100 / floor)) % of parsing"
	grep -q " 0$" "$dir/lost"
}

# Lines of user and system time: the mean of their sum.
mean() { awk '{ n += $1 + $2 } END { printf "%d", n / NR }' "$1"; }

# Clock ticks of CPU time that a process and the children it waited for have used.
ticks() { awk '{ print $14 + $15 + $16 + $17 }' "/proc/$1/stat"; }

# How much of the work the server has: so many requests from a client through
# the server, client_proxy, the server again, a worker, and back.
link() {
	(
		place "link.$1"
		guard
		"$1"
		proxy
		workers b
		theirs=$(ticks "$serverpids")
		ours=$(ticks "$proxypid")
		begun=$(milliseconds)
		asker "$c2s" user x proxy.localhost "$2"
		askers_are_done >"$dir/done"
		took=$(($(milliseconds) - begun))
		theirs=$(($(ticks "$serverpids") - theirs))
		ours=$(($(ticks "$proxypid") - ours))
		echo "$1: $(cut -d, -f2 "$dir/asked.x"), $(($2 * 1000 / took)) a second;" \
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
	for i in $(seq "${RUNS:-15}"); do
		while read -r name n times resources tls; do
			[ -f "$dir/$name" ] || profile "$name" "$n" >"$dir/$name"
			[ "$name" = answers ] || n=$((2 * n))
			{
				printf '%s ' "$name/$resources$tls" $((n * times))
				"$load" parse "$dir/$name" "$times" 131072
				printf ' '
				serve_load "$dir/$name" "$times" $((n * times)) -1 \
				    "$cport" "$load" relay "$cport" 131072
				printf ' '
				serve_load "$dir/$name" "$times" $((n * times)) \
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
		{ /usr/bin/python3 "$TESTDIR/peer.py" run "$bin" -v && echo; } >>"$dir/starts"
		{ serve_load /dev/null 0 0 0 "$cport" "$bin" && echo; } >>"$dir/online"
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

# ---- portable ----

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
	objs=$TESTDIR/objs.$name
	CPPFLAGS="-I$TESTDIR/lib/expat/lib -I$TESTDIR/lib/bearssl/inc"
	export CPPFLAGS
	[ -d "$objs" ] || (
		mkdir "$objs"
		cd "$objs" || exit
		touch expat_config.h
		for f in "$TESTDIR"/lib/expat/lib/xmlparse.c "$TESTDIR"/lib/expat/lib/xmltok.c \
		    "$TESTDIR"/lib/expat/lib/xmlrole.c "$TESTDIR"/lib/bearssl/src/*/*.c \
		    "$TESTDIR"/lib/expat/lib/random_dev_urandom.c \
		    "$TESTDIR"/lib/bearssl/src/settings.c; do
			[ -f "$f" ] || continue # some expats have more files
			# shellcheck disable=SC2086 # words
			$CC -O1 -w -DXML_GE=1 -DXML_DEV_URANDOM -DXML_NS -DXML_DTD -DXML_CONTEXT_BYTES=1024 \
			    -I. -I"$TESTDIR/lib/bearssl/src" $CPPFLAGS -c "$f" || exit
		done
	) || return
	LIBS=$(echo "$objs"/*.o)
	export LIBS
}

# What they are: their names; a compiler and its flags, and the linker's; what runs
# the program, as not every machine can; `own' if the libraries have to be compiled, too.
variants() {
	cat <<-E
	gcc-O2|gcc|-O2|||
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
	32-bit|i686-linux-gnu-gcc|-O2|-static|qemu-i386|own
	powerpc|powerpc-linux-gnu-gcc|-O2|-static|qemu-ppc|own
	aarch64|aarch64-linux-gnu-gcc|-O2|-static|qemu-aarch64|own
	E
}

# The environment of one of them.
build_as() {
	IFS='|' read -r name CC CFLAGS LDFLAGS WRAPPER libs <<-E
	$(variants | grep "^$1|")
	E
	export CC CFLAGS LDFLAGS WRAPPER
	[ "$name" != bmake ] || export MAKE=bmake
	[ "$libs" != own ] || libraries
}

# Does it run here at all?
runs() {
	brief -v
	[ "$rc" = 0 ] || { cat "$dir/err"; return 1; }
}

# Other compilers, flags, C libraries and processors, or those whose name begins
# so, and these tests, if not all that are portable.
portable() {
	which=${1-}
	[ $# = 0 ] || shift
	variants | grep -q "^$which" || { echo "no such variant: $which"; exit 1; }
	command -v qemu-ppc >/dev/null || { echo "needs more packages: see README"; exit 1; }
	library_sources || echo "not ok - the sources of the libraries"
	nth=0
	for v in $(variants | sed -n "s/^\(${which}[^|]*\)|.*/\1/p"); do
		nth=$((nth + 1))
		# once, before tests need the libraries side by side
		if (place built && build_as "$v" && configure && runs) >"$TESTDIR/built.log" 2>&1; then
			# shellcheck disable=SC2046,SC2048,SC2086 # words
			jobs_as "$v" ${*:-$(portable_tests | awk "(NR + $nth) % ${SHARE:-1} == 0")}
		else
			tail -n 5 "$TESTDIR/built.log" | sed 's/^/# /'
			echo "not ok - a program that runs, $v"
		fi
	done
	work_side_by_side
}

# Those with TLS or a scripted server that wait for no time-outs and look at nothing that
# is this machine's; and some that do.
portable_tests() {
	sed -n '/^[a-z0-9_]*() {$/{s/() {//;h;}
	    /^	scripted/{/stall=\|patience=\|answertime=/!{g;p;};}' test.sh | sort -u >"$TESTDIR/scripted"
	tests | grep -x -f "$TESTDIR/scripted" | grep -v small_in_memory
	tests | grep -e ^tls_ -e the_first_answer -e requests_wait -e silent_departures
}

# ---- demo ----

# Print a stanza as it passes, and what it is.
show() { printf '\n%s\n    %s\n' "$1" "$2"; }

demo() {
	place demo
	guard
	echo "Prosody starts, then client_proxy with the settings of config.def.h,"
	echo "but for the port. service@localhost logs in twice and accepts it."
	prosody
	proxy
	services a b
	sed 's/^/    /' "$log"
	login user abc
	ask user 1234
	show "1. user@localhost/abc asks proxy.localhost:" "$asked"
	who_got "id='1234'"
	hear "$r" "id='1234'"
	show "2. one of the target's resources, $r, gets the request, and from whom:" "$heard"
	answer "$r"
	show "3. it answers to that address:" "$answer"
	hear user "<iq" "id='1234'"
	show "4. the user gets the answer, from the address asked:" "$heard"
	printf '\nA dozen more, and who answers each:\n    '
	for i in 1 2 3 4 5 6 7 8 9 10 11 12; do
		ask user $i
		who_got "id='$i'"
		hear "$r" "id='$i'"
		answer "$r"
		hear user "id='$i'" "by='$r'"
		printf '%s ' "$r"
	done
	echo
	stop
}

# ---- newcomer ----

# The lines of README, pasted into a bare system of each suite, which comes from
# where apt has its own: the demo, some tests of each kind, and the benchmark, once.
newcomer() {
	[ "$(id -u)" = 0 ] || { echo "newcomer: only root can make a bare system"; exit 1; }
	command -v debootstrap >/dev/null || { echo "newcomer: needs debootstrap"; exit 1; }
	# shellcheck disable=SC2016 # for apt
	mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' \
	    'Origin: Debian' | grep -v security | head -n 1)
	some="compiles_without_a_warning the_worker_of_the_man_page_answers runit_runs_it \
	    a_week_on_prosody_with_tls a_week_on_ejabberd_with_tls a_week_on_jabberd2 jitsi_meet"
	[ $# != 0 ] || set -- bookworm trixie
	for suite; do
		root=$TESTDIR/$suite
		if ! debootstrap --variant=minbase "$suite" "$root" "$mirror" >"$TESTDIR/log" 2>&1; then
			tail "$TESTDIR/log"
			echo "not ok - a bare system, $suite"
			continue
		fi
		# what is installed there does not start by itself
		printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
		chmod 755 "$root/usr/sbin/policy-rc.d"
		cp -R "$TESTDIR/src" "$root/client_proxy"
		pasted "make demo" "$(readme 'make demo')"
		line=$(readme "make test")
		pasted "some tests" "${line%make test}./test.sh $some"
		pasted "make bench" "make bench"
		pasted "man" "$(sed -n 's/.*: \(apt-get install -y man-db\)\.)$/\1/p' README) && man ./client_proxy.1 | cat"
	done
}

# The line of README that ends so.
readme() {
	sed -n "s/^	\(apt-get install .* && $1\)\$/\1/p" README
}

# One of them: what it is, and the line, from which nothing is left running.
pasted() {
	printf 'apt-get update -q\ncd /client_proxy\n%s\n' "$2" >"$root/pasted"
	# shellcheck disable=SC2016 # for the shell in there
	if [ -n "$2" ] && unshare --mount --pid --fork sh -ec 'mount -t proc proc "$1/proc"
		exec chroot "$1" env -i PATH="$PATH:/usr/sbin:/sbin" HOME=/root RUNS=1 \
		    DEBIAN_FRONTEND=noninteractive sh -e /pasted' \
	    sh "$root" >"$TESTDIR/log" 2>&1 </dev/null; then
		echo "ok - $1, $suite"
	else
		tail -n 40 "$TESTDIR/log" | sed 's/^/# /'
		echo "not ok - $1, $suite"
	fi
}

# ---- coverage ----

# The sentences of the man page, one a line, behind what they are about: the item
# or the section. Of those that are the same in several places this is a part. One that
# is not at its end before an example goes on behind it.
sentences() {
	awk '
	function put(w) { text = text (text == "" || w ~ /^[.,;:)?]+$/ ? "" : " ") w }
	function flush(to) {
		if (text != "")
			print about "\t" text
		text = ""
		about = to
	}
	BEGIN { hidden = 1 }
	/^\.Sh DESCRIPTION|^\.Ed/ { hidden = 0 }
	/^\.El/ { flush(section) }
	/^\.Bd/ { hidden = shown = 1 }
	/^\.(Pp|Bl)/ && !shown { flush(about) }
	hidden || /^\.(Pp|Bl|Ed|El)/ { next }
	{ gsub(/\\e/, "\\"); gsub(/\\&|"/, ""); gsub(/\\\(dq/, "\""); macro = "" }
	/^\.Nm/ { $1 = "client_proxy" }
	/^\.Fl/ { $1 = ""; $2 = "-" $2 }
	/^\.[A-Z]/ { macro = $1; $1 = "" }
	macro ~ /^\.(Sh|Ss|It)/ || (shown && (text ~ /:$/ || !/^ *[a-z]/)) { flush(about) }
	{
		shown = 0
		for (i = 1; i <= NF; i++)
			if ($i != "" && !(macro == ".It" && $i ~ /^(Va|Dv|Cm|Sy|Li|Pq|Ta)$/))
				put($i)
	}
	macro == ".It" && / Ta / { flush(about) }
	macro ~ /^\.(Sh|Ss|It)/ && text != "" { about = text; text = "" }
	macro ~ /^\.(Sh|Ss)/ { section = about }
	/[^.][.?]$/ { flush(about) }' client_proxy.1
}

# What stands in quotes above the tests, and in the list of what none can prove, one
# a line.
quotes() {
	awk '/^# ---- the specification/, /^# ---- helpers/' test.sh | awk '
	/^: <<.*untested/ { listed = 1; next }
	/^END/ { print text; text = ""; listed = 0 }
	listed && !/^\t/ { if (text != "") print text; text = $0 }
	listed && /^\t/ { sub(/^\t/, " "); text = text $0 }
	/^# "/ { text = ""; quoted = 1 }
	quoted { sub(/^# "?/, ""); text = text (text == "" ? "" : " ") $0 }
	quoted && /"$/ { print substr(text, 1, length(text) - 1); text = ""; quoted = 0 }'
}

# Sentences of the man page, or parts of them, that are quoted nowhere; quotes of what
# neither the man page nor README says any more.
coverage() {
	sentences >"$TESTDIR/sentences"
	quotes >"$TESTDIR/quotes"
	awk -F '\t' '
	# Is s this quote, in which ... stands for anything? If so, strike it out in rest.
	function says(s, quote,  part, n, i, at) {
		n = split(quote, part, / ?\.\.\.[,;:]? ?/)
		if (n == 1 && s != quote)
			return 0
		rest = s
		for (i = 1; i <= n; i++) {
			at = index(s, part[i])
			if (!at || (i == 1 && at > 1) || (i == n && part[i] != "" && \
			    substr(s, length(s) - length(part[i]) + 1) != part[i] && n > 1))
				return 0
			s = substr(s, at + length(part[i]))
		}
		return 1
	}
	function strike(left, quote,  part, n, i, at) {
		n = split(quote, part, / ?\.\.\.[,;:]? ?/)
		for (i = 1; i <= n; i++)
			if (part[i] != "" && (at = index(left, part[i])))
				left = substr(left, 1, at - 1) "|" substr(left, at + length(part[i]))
		return left
	}
	FILENAME ~ /sentences$/ { about[++n] = $1; text[n] = $2; times[$2]++; next }
	FILENAME ~ /README$/ { gsub(/^[ \t]+/, ""); readme = readme " " $0; next }
	FNR == 1 {
		for (i = 1; i <= n; i++)
			left[i] = text[i] = (times[text[i]] > 1 ? about[i] ": " : "") text[i]
	}
	{
		found = 0
		for (i = 1; i <= n; i++)
			if (says(text[i], $0)) {
				found = 1
				left[i] = $0 == text[i] ? "" : strike(left[i], $0)
			}
		if (!found && !index(readme, $0))
			stale[++nstale] = $0
	}
	END {
		for (i = 1; i <= n; i++)
			if (left[i] ~ /[a-z]/) {
				print "without a test: " left[i]
				missing++
			}
		for (i = 1; i <= nstale; i++)
			print "not in the man page: " stale[i]
		printf "%d sentences, %d without a test; %d quotes, %d of nothing\n", n, missing, FNR, nstale
		exit missing + nstale > 0
	}' "$TESTDIR/sentences" README "$TESTDIR/quotes"
}

# ---- running ----

# The tests are the functions under a quote.
tests() {
	awk '/^# ---- the specification/, /^# ---- helpers/ {
		if (/^# "/)
			quoted = 1
		else if (/^$/)
			quoted = 0
		else if (quoted && /^[a-z0-9_]*\(\) \{/)
			print substr($1, 1, length($1) - 2)
	}' test.sh
}

# The body of a test, in a process of its own, in a variant. What still runs at its
# end must end well.
inside() {
	case $2 in
	# that it is not optimised saves a quarter of the time; most other variants are
	plain) CFLAGS=${CFLAGS--O0} ;;
	sanitizers) limit=2400 CFLAGS="-g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all" ;;
	own | front)
		# the same certificate, so that what was built for it serves again
		cp "$TESTDIR"/server.* "$dir"
		TLS=$2
		;;
	valgrind) limit=2400 WRAPPER="valgrind -q --leak-check=full --error-exitcode=9" ;;
	*) build_as "$2" ;;
	esac
	guard
	proxypid=
	"$1"
	[ -z "$proxypid" ] || gone "$proxypid" || stop
}

# Run one test in a directory and on ports of its own, in a variant.
run() {
	place "run.$2.$1"
	timeout --foreground -k 30 300 sh ./test.sh inside "$1" "$2" >"$dir/output" 2>&1 </dev/null
	rc=$?
	grep -q -e "runtime error" -e Sanitizer -e "^==" "$dir"/proxy.*.log 2>/dev/null && rc=1
	case $2 in
	plain) as= ;;
	sanitizers | valgrind) as=", with $2" ;;
	own) as=", over TLS" ;;
	front) as=", TLS before the server" ;;
	*) as=", $2" ;;
	esac
	case $rc in
	0) echo "ok - $1$as" ;;
	77) echo "ok - $1$as # skipped: $(tail -n 1 "$dir/output")" ;;
	*)
		printf 'not ok - %s\n%s\n' "$1$as" "$(tail -n 20 "$dir/output" "$dir"/proxy.*.log 2>/dev/null |
		    cut -c1-2000 | sed 's/^/# /')"
		;;
	esac
	[ $rc != 0 ] || rm -rf "$dir"
}

# Add tests to the jobs: a variant, their names.
jobs_as() {
	v=$1
	shift
	printf '%s\n' "$@" | sed "s/^/$v /" >>"$TESTDIR/jobs"
}

# Run all jobs, each by the first of several workers that takes it.
work_side_by_side() {
	touch "$TESTDIR/jobs"
	i=$((${JOBS:-$(($(getconf _NPROCESSORS_ONLN) * 2))}))
	while [ $i -gt 0 ]; do
		work &
		i=$((i - 1))
	done
	wait
	rm -rf "$TESTDIR/jobs" "$TESTDIR"/taken.*
}

work() {
	while read -r v t; do
		[ -e "$TESTDIR/taken.$v.$t" ] || ! mkdir "$TESTDIR/taken.$v.$t" 2>/dev/null || run "$t" "$v"
	done <"$TESTDIR/jobs"
}

# Those that measure time.
alone="a_crash_storm asking_again probes_have_pauses signals
	a_server_that_comes_back_is_seen_at_once a_request_takes_one_turn
	what_waits_is_written_on_sigterm"

# What others may send that is hostile, and TLS.
hostile="nothing_else_is_rewritten resources_of_any_spelling own_ids_of_every_shape
	no_way_around_the_table answers_to_nobody_online_are_dropped
	answers_from_or_to_nobody_are_dropped addresses_that_are_too_long
	what_is_too_large_is_refused prefixes_of_the_stream_have_a_limit liveness
	handshake_with_any_id forbidden_xml wrong_streams cut_connections refusals_are_logged
	not_for_us names_of_1023_bytes full_table tls_with_each_kind_of_key
	tls_with_a_pin_of_any_spelling eight_fingerprints_and_not_nine tls_renewal
	a_wrong_certificate_is_refused tls_1_2_and_its_ciphers a_server_without_tls_1_2
	tls_that_is_not_answered tls_cut tls_name"

# Large amounts.
large="tls_under_load many_fail_at_once escapes_are_few back_pressure
	a_server_that_waits_for_us_to_read answers_that_come_in_a_jam a_server_that_never_reads_is_left
	a_fresh_parser_loses_nothing a_stanza_that_is_too_costly_ends_the_stream
	memory_stays_bounded"

# What keeps requests in mind.
remembering="the_exchange jitsi_meet relayed_as_the_table_says gets_are_handed_on
	who_leaves_takes_only_his_own_requests_along the_first_answer_counts one_is_in_charge
	a_failed_request_is_forgotten_after_as_many_others silent_departures_are_found
	what_is_too_long_to_remember_gets_no_error strangers_do_not_fill_the_log"

# All tests; then many of them with sanitizers, over TLS, with valgrind.
# shellcheck disable=SC2046,SC2086 # words
all_tests() {
	(dir=$TESTDIR && certificate server)
	tests | grep -v -x -F "$(printf '%s\n' $alone)" >"$TESTDIR/together"
	on_prosody=$(awk '/^[a-z0-9_]*\(\)/ { name = $1; sub(/\(\).*/, "", name) }
	/^	prosody$|\{ .* prosody; \}/ { print name }' test.sh | grep -x -F -f "$TESTDIR/together" | sort -u)
	jobs_as plain $(cat "$TESTDIR/together")
	# the rest is simulated with sanitizers
	jobs_as sanitizers $hostile $large jitsi_meet ugly_stanzas_on_prosody
	jobs_as own $on_prosody
	# what is before the server still listens when that does not
	jobs_as front $(echo "$on_prosody" | grep -v restarts) $large byte_by_byte liveness
	jobs_as valgrind $remembering $hostile
	work_side_by_side
	jobs_as plain $alone
	JOBS=1 work_side_by_side
}

case ${1-} in
list) tests; exit ;;
coverage) coverage; exit ;;
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
inside) inside "$2" "$3"; exit ;;
demo) demo; exit ;;
'' | portable | newcomer) ;;
*)
	for t in "$@"; do
		tests | grep -q -x -F -e "$t" || { echo "no test is called $t: see $0 list" >&2; exit 1; }
	done
	;;
esac
case ${1-} in
'') all_tests ;;
portable)
	shift
	portable "$@"
	;;
newcomer)
	shift
	newcomer "$@"
	;;
*)
	jobs_as plain "$@"
	work_side_by_side
	;;
esac | tee "$TESTDIR/out"
skipped=$(grep -c "^ok.* # skipped" "$TESTDIR/out")
passed=$(($(grep -c "^ok" "$TESTDIR/out") - skipped))
failed=$(grep -c "^not ok" "$TESTDIR/out")
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
