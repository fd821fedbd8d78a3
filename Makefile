# client_proxy - IQ requests to one address, answered by a client's resources
# See LICENSE file for copyright and license details.
.POSIX:

VERSION = 0.1

PREFIX ?= /usr/local
MANPREFIX ?= $(PREFIX)/share/man

LIBS = -lexpat -lbearssl
FLAGS = -std=c99 -pedantic -Wall -Wextra -DVERSION=\"$(VERSION)\"

DIST = client_proxy-$(VERSION)
FILES = Makefile client_proxy.c config.def.h client_proxy.1 test.sh LICENSE README

all: client_proxy

config.h:
	cp config.def.h config.h

client_proxy: client_proxy.c config.h Makefile
	$(CC) $(CPPFLAGS) $(FLAGS) $(CFLAGS) -o $@ client_proxy.c $(LDFLAGS) $(LIBS)

# The binary carries the secret: others may run it, not read it.
install: all
	mkdir -p $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(MANPREFIX)/man1
	(umask 077 && cp -f client_proxy $(DESTDIR)$(PREFIX)/bin)
	chmod 711 $(DESTDIR)$(PREFIX)/bin/client_proxy
	sed 's/VERSION/$(VERSION)/g' client_proxy.1 >$(DESTDIR)$(MANPREFIX)/man1/client_proxy.1
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

demo:
	./test.sh demo

.PHONY: all install uninstall clean dist test demo
