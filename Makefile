# client_proxy - IQ requests to one address, answered by a client's resources
# See LICENSE file for copyright and license details.
.POSIX:

VERSION = 0.1

PREFIX ?= /usr/local
MANPREFIX ?= $(PREFIX)/share/man

CFLAGS = -O2
LIBS = -lexpat -lbearssl
FLAGS = -std=c99 -pedantic -Wall -Wextra -DVERSION=\"$(VERSION)\"

DIST = client_proxy-$(VERSION)
FILES = Makefile client_proxy.c config.def.h client_proxy.1 test.sh LICENSE README

all: client_proxy

# The settings hold the secret and so does the binary: they are for their owner
# only, and once it is installed, others may run it, not read it.
config.h:
	umask 077 && cp config.def.h config.h

client_proxy: client_proxy.c config.h Makefile
	umask 077 && $(CC) $(CPPFLAGS) $(FLAGS) $(CFLAGS) -o $@ client_proxy.c $(LDFLAGS) $(LIBS)

install: all
	mkdir -p $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(MANPREFIX)/man1
	umask 077 && cp -f client_proxy $(DESTDIR)$(PREFIX)/bin
	chmod 711 $(DESTDIR)$(PREFIX)/bin/client_proxy
	cp -f client_proxy.1 $(DESTDIR)$(MANPREFIX)/man1
	chmod 644 $(DESTDIR)$(MANPREFIX)/man1/client_proxy.1

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/client_proxy
	rm -f $(DESTDIR)$(MANPREFIX)/man1/client_proxy.1

clean:
	rm -f client_proxy $(DIST).tar.gz

dist: clean
	mkdir -p $(DIST)
	cp $(FILES) $(DIST)
	tar -cf - $(DIST) | gzip >$(DIST).tar.gz
	rm -rf $(DIST)

test:
	./test.sh

bench:
	./test.sh bench

demo:
	./test.sh demo

.PHONY: all install uninstall clean dist test bench demo
