# client_proxy - one XMPP address in front of many workers
# See LICENSE file for copyright and license details.
.POSIX:

VERSION = 1.0

PREFIX ?= /usr/local
MANPREFIX ?= $(PREFIX)/share/man

# To build elsewhere: make -f /source/Makefile SRC=/source
SRC = .

CFLAGS = -O2
LIBS = -lexpat -lbearssl
FLAGS = -std=c99 -pedantic -Wall -Wextra -I. -DVERSION=\"$(VERSION)\"

DIST = client_proxy-$(VERSION)
FILES = Makefile client_proxy.c config.def.h client_proxy.1 test.sh LICENSE README

all: client_proxy

# The settings hold the secret and so does the binary: they are for their owner
# only, and once it is installed, others may run it, not read it.
config.h:
	umask 077 && cat $(SRC)/config.def.h >config.h

client_proxy: $(SRC)/client_proxy.c config.h $(SRC)/Makefile
	@[ $(SRC) = . ] || [ ! -f $(SRC)/config.h ] || \
		{ echo "$(SRC)/config.h would be used: remove it" >&2; exit 1; }
	umask 077 && $(CC) $(CPPFLAGS) $(FLAGS) $(CFLAGS) -o $@ $(SRC)/client_proxy.c $(LDFLAGS) $(LIBS)

install: all
	umask 022 && mkdir -p $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(MANPREFIX)/man1
	umask 077 && cp -f client_proxy $(DESTDIR)$(PREFIX)/bin
	chmod 711 $(DESTDIR)$(PREFIX)/bin/client_proxy
	cp -f $(SRC)/client_proxy.1 $(DESTDIR)$(MANPREFIX)/man1
	chmod 644 $(DESTDIR)$(MANPREFIX)/man1/client_proxy.1

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/client_proxy
	rm -f $(DESTDIR)$(MANPREFIX)/man1/client_proxy.1

clean:
	rm -f client_proxy $(DIST).tar.gz

# The same bytes each time: order, modes and times are fixed.
dist: clean
	rm -rf $(DIST)
	mkdir $(DIST)
	for f in $(FILES); do cp $(SRC)/$$f $(DIST) || exit; done
	chmod 644 $(DIST)/*
	chmod 755 $(DIST) $(DIST)/test.sh
	TZ=UTC touch -t 202611260000 $(DIST)/*
	LC_ALL=C && export LC_ALL && tar -cf - $(DIST)/* | gzip -n >$(DIST).tar.gz
	rm -rf $(DIST)

test:
	$(SRC)/test.sh

bench:
	$(SRC)/test.sh bench

demo:
	$(SRC)/test.sh demo

.PHONY: all install uninstall clean dist test bench demo
